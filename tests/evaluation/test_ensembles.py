"""Several models as one candidate: votes counted by hand, and probabilities averaged by hand."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.errors import ModelError, RecipeError
from upslope.evaluation.arms import Arm, EnsembleArm
from upslope.evaluation.compare import compare
from upslope.evaluation.ensembles import Ensemble, candidate, voted
from upslope.evaluation.evaluate import evaluate
from upslope.policies.sampling import Sampling
from upslope.records import Prompt, Rollout
from upslope.tasks import Task

LABELS = ("good", "bad", "neither")
GREEDY, SAMPLED = (Sampling(temperature, None, None, 4, ()) for temperature in (0.0, 1.0))


def rewards():
    """Functions within a function travel to the reward worker as they are: it need not import this module or torch."""

    def length(completion):
        return min(1.0, len(completion) / 40)

    def right(completion, label):
        return float(completion == label)

    return length, right


length, right = rewards()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_policy):
    """Three saved classifiers of one label list and two that write."""
    root = tmp_path_factory.mktemp("models")
    for seed in (1, 2, 3):
        make_policy("tiny-bert", kind="classifier", labels=LABELS, seed=seed).save(root / f"labels-{seed}")
    for seed in (1, 2):
        make_policy("tiny-llama", seed=seed).save(root / f"text-{seed}")
    return root


@pytest.fixture(scope="module")
def classifiers(folders):
    return tuple(folders / f"labels-{seed}" for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def labelled():
    rows = [{"prompt": f"some text {i}", "label": LABELS[i % 3]} for i in range(60)]
    return Task(prompts=rows[:1], eval_prompts=rows, reward=right, labels=LABELS)


def written(*texts, failed=()):
    """One rollout a member, to one prompt."""
    row = Rollout(Prompt(0, "x"), 0, 0, (1, 2), (2,), (0,), (-1.0,), "", "eos")
    return [[row.replace(text=t, version=i, failure="broken" if i in failed else None)] for i, t in enumerate(texts)]


def test_the_most_frequent_answer_wins_and_of_equals_the_first():
    assert voted(written("7", "8 ", " 8"))[0].version == 1
    assert voted(written("7", "8", "9"))[0].version == 0
    assert voted(written("9", "8", "9", "8"))[0].version == 0
    assert voted(written("8", "8", "9", failed=(0, 1)))[0].version == 2, "what failed has no vote"
    assert voted(written("8", "9", failed=(0, 1)))[0].failure == "broken"


def test_probabilities_are_averaged(classifiers, labelled):
    """Greedily the label of the largest mean; the reported log-probability is that of the mean."""
    arm = EnsembleArm(Ensemble(classifiers, by="average"), kind="classifier", labels=LABELS, seed=0)
    prompts = labelled.eval_prompts[:12]
    found = arm.answer(prompts, samples=1, sampling=GREEDY)
    for prompt, rollout in zip(prompts, found, strict=True):
        tokens = torch.tensor([arm.members[0].policy.encode(prompt).tokens])
        with torch.no_grad():
            logits = [policy.model(input_ids=tokens).logits[0].double() for policy in arm.policies]
        mean = torch.stack(logits).softmax(-1).mean(0)
        assert rollout.text == LABELS[int(mean.argmax())]
        assert rollout.engine_logprobs[0] == pytest.approx(math.log(float(mean.max())), rel=1e-4)
    assert arm.tokens == 36


def test_an_ensemble_of_equals_samples_as_each_does(classifiers, labelled):
    """The random numbers are those of a single model, so that it shares them with the other arm."""
    alone = Arm(classifiers[0], kind="classifier", labels=LABELS, seed=5)
    twice = EnsembleArm(Ensemble((classifiers[0],) * 2, by="average"), kind="classifier", labels=LABELS, seed=5)
    texts = [[r.text for r in arm.answer(labelled.eval_prompts, samples=3, sampling=SAMPLED)] for arm in (alone, twice)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_one_model_votes_with_itself_by_other_numbers(folders):
    prompts = [Prompt(i, f"prompt {i}") for i in range(8)]
    arm = EnsembleArm(Ensemble((folders / "text-1",) * 2), kind="causal", labels=(), seed=3)
    arm.answer(prompts, samples=1, sampling=SAMPLED)
    said = [[r.text for r in member.answer(prompts, samples=1, sampling=SAMPLED)] for member in arm.members]
    single = Arm(folders / "text-1", kind="causal", labels=(), seed=3).answer(prompts, samples=1, sampling=SAMPLED)
    assert said[0] == [rollout.text for rollout in single]
    assert said[1] != said[0]


def test_ensembles_are_evaluated_and_compared(classifiers, labelled, folders):
    ensemble = Ensemble(classifiers)
    alone = [evaluate(model, labelled, kind="classifier").measurement.rollouts for model in classifiers]
    votes = [max(said := [r.text for r in row], key=said.count) for row in zip(*alone, strict=True)]
    truth = [prompt.columns["label"] for prompt in labelled.eval_prompts]
    expected = sum(v == t for v, t in zip(votes, truth, strict=True)) / 60
    found = compare(classifiers[0], ensemble, labelled, kind="classifier")
    assert found.means[1] == pytest.approx(expected)
    assert evaluate(ensemble, labelled, kind="classifier").interval.estimate == pytest.approx(expected)
    assert found.names[1] == "+".join(map(str, classifiers))
    assert found.num_tokens == 60 * 4
    task = Task(prompts=["x"], eval_prompts=[f"prompt {i}" for i in range(10)], reward=length)
    pair = Ensemble((folders / "text-1", folders / "text-2"))
    assert compare(folders / "text-1", pair, task, max_new_tokens=3, temperature=1.0).common_numbers


def test_the_command_lines_plus_signs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert candidate("a+b", by="average") == Ensemble(("a", "b"), by="average")
    (tmp_path / "a+b").mkdir()
    assert candidate("a+b", by="vote") == "a+b"
    assert candidate("runs/one", by="vote") == "runs/one"


def test_what_is_no_ensemble_is_refused(folders, classifiers, labelled):
    with pytest.raises(RecipeError, match="two members at least"):
        Ensemble(("one",))
    texts = Ensemble((folders / "text-1", folders / "text-2"), by="average")
    task = Task(prompts=["x"], eval_prompts=["y", "z"], reward=length)
    with pytest.raises(ModelError, match="can only be listed by a classifier"):
        evaluate(texts, task)
    with pytest.raises(RecipeError, match="leave out beams"):
        evaluate(Ensemble(classifiers), labelled, beams=2)
    with pytest.raises(RecipeError, match="leave it out for an ensemble"):
        compare(
            classifiers[0], Ensemble(classifiers), labelled, kind="classifier", temperature=1, control=classifiers[0]
        )
