"""Two models on one task: what is paired, what is shared, when it stops, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import upslope
from upslope.errors import DataError, ModelError, RecipeError, RewardError
from upslope.evaluation.arms import Arm
from upslope.evaluation.compare import compare
from upslope.evaluation.critic import Critic
from upslope.evaluation.evaluate import evaluate
from upslope.policies.sampling import Sampling
from upslope.tasks import Task

LABELS = ("good", "bad")


def rewards():
    def vowels(completion):
        return sum(letter in "aeiouAEIOU13579" for letter in completion) / max(1, len(completion))

    def fails_on_every_third(prompt, completion):
        if int(prompt.split()[-1]) % 3 == 0:
            raise ValueError("not this one")
        return vowels(completion)

    def right(completion, label):
        return float(completion == label)

    def constant(completion):
        return 1.0

    return vowels, fails_on_every_third, right, constant


vowels, fails_on_every_third, right, constant = rewards()


def task_of(reward=vowels, count=40, **more):
    prompts = [{"prompt": f"prompt {i}", "page": i // 4, **more} for i in range(count)]
    return Task(prompts=["x"] if not more else prompts[:1], reward=reward, eval_prompts=prompts, name="letters")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_policy):
    """Saved models: two of one tokenizer, one of another, two classifiers."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 1), ("two", 2)):
        make_policy("tiny-llama", seed=seed).save(root / name)
        make_policy("tiny-bert", kind="classifier", labels=LABELS, seed=seed).save(root / f"{name}-labels")
    other = make_policy("tiny-llama", seed=3)
    other.tokenizer.add_tokens(["<other>"])
    other.model.resize_token_embeddings(len(other.tokenizer))
    other.save(root / "other")
    return root


SAMPLED = {"temperature": 1.0, "max_new_tokens": 6}


def test_it_is_the_difference_of_two_evaluations(folders):
    """Each mean is what `evaluate` finds with the same seed, the difference that of the pairs, few of which differ."""
    task = task_of()
    found = compare(folders / "one", folders / "two", task, seed=3, **SAMPLED)
    alone = [evaluate(folders / name, task, seed=3, **SAMPLED).measurement for name in ("one", "two")]
    assert found.means == pytest.approx([measured.mean for measured in alone])
    paired = np.array([alone[1].values[p.id] - alone[0].values[p.id] for p in task.eval_prompts])
    assert found.estimate == pytest.approx(paired.mean())
    rewards = [value for measured in alone for value in measured.values.values()]
    allowed = [*paired, max(rewards) - min(rewards), min(rewards) - max(rewards)]
    assert 0 < np.count_nonzero(paired) < 20
    assert found.difference.se == pytest.approx(np.std(allowed, ddof=1) / math.sqrt(42))
    assert found.common_numbers
    assert found.num_tokens == sum(len(r.actions) for measured in alone for r in measured.rollouts)
    assert found.generating_s > found.noise_s > 0
    assert upslope.compare is compare


def test_a_model_is_tied_with_itself(folders):
    """Common numbers: the same answers, so every difference is 0, and nothing but the unseen prompts is in doubt."""
    found = compare(folders / "one", folders / "one", task_of(count=100), margin=0.06, samples=2, **SAMPLED)
    assert found.verdict == "tied"
    assert found.estimate == 0


def test_other_tokenizers_are_paired_without_common_numbers(folders):
    found = compare(folders / "one", folders / "other", task_of(), **SAMPLED)
    assert not found.common_numbers
    assert "the models' tokenizers differ: paired on prompts, without common random numbers" in found.notes
    assert found.difference.num_prompts == 40


def test_looking_stops_with_the_verdict_and_whole_clusters(folders):
    """b is far better by a reward that knows its words: stopped at the first look, of whole pages; and the reverse."""

    def like_two(completion, wanted):
        return float(completion == wanted)

    prompts = [f"prompt {i}" for i in range(120)]
    asked = Task(prompts=["x"], eval_prompts=prompts, reward=vowels).eval_prompts
    arm = Arm(folders / "two", kind="causal", labels=(), seed=0)
    texts = [r.text for r in arm.answer(asked, samples=1, sampling=Sampling(1.0, None, None, 4, ()))]
    rows = [{"prompt": p, "wanted": t, "page": i // 3} for i, (p, t) in enumerate(zip(prompts, texts, strict=True))]
    task = Task(prompts=rows[:1], eval_prompts=rows, reward=like_two)
    how = {"look_every": 10, "max_new_tokens": 4, "temperature": 1.0}
    found = compare(folders / "one", folders / "two", task, cluster="page", **how)
    assert found.means[1] == 1.0
    assert found.verdict == "better"
    assert found.difference.num_clusters == 30
    assert found.difference.num_prompts == 90
    assert len(found.looks) == 1
    reverse = compare(folders / "two", folders / "one", task, method="betting", bounds=(0, 1), **how)
    assert reverse.verdict == "worse"
    assert reverse.difference.num_prompts < 60
    assert [look.verdict for look in reverse.looks[:-1]] == ["undecided"] * (len(reverse.looks) - 1)


def test_what_cannot_be_scored_is_left_out_of_both_and_said(folders):
    found = compare(folders / "one", folders / "two", task_of(fails_on_every_third, count=30), **SAMPLED)
    assert found.difference.num_prompts == 20
    assert any("10 prompts could not be scored" in note and "ValueError" in note for note in found.notes)


def test_classifiers_are_compared_alike(folders):
    """Greedy labels, against the classes counted by hand; sampled ones share their numbers."""
    task = Task(
        prompts=[{"prompt": "text", "label": "good"}],
        eval_prompts=[{"prompt": f"text {i}", "label": LABELS[i % 2]} for i in range(40)],
        reward=right,
        labels=LABELS,
    )
    models = folders / "one-labels", folders / "two-labels"
    found = compare(*models, task, kind="classifier")
    chosen = []
    for model in models:
        arm = Arm(model, kind="classifier", labels=LABELS, seed=0)
        encoded = [arm.policy.encode(prompt) for prompt in task.eval_prompts]
        logits = [arm.policy.model(input_ids=torch.tensor([p.tokens])).logits[0] for p in encoded]
        chosen.append(
            np.mean([LABELS[int(x.argmax())] == p.columns["label"] for x, p in zip(logits, encoded, strict=True)])
        )
    assert found.means == pytest.approx(chosen)
    assert compare(*models, task, kind="classifier", temperature=1.0).common_numbers


def test_the_critic_of_log_ratios_has_mean_0_over_all_labels(folders):
    """Every label with its probability: exact, for a model that is neither critic nor base."""
    task = Task(prompts=["some text"], reward=vowels, labels=LABELS)
    one, two = (Arm(folders / f"{n}-labels", kind="classifier", labels=LABELS, seed=0) for n in ("one", "two"))
    sampling = Sampling(0.7, None, None, 1, ())
    rows = two._engine.every_answer([two.policy.encode(p) for p in task.prompts], sampling=sampling)
    controls = Critic(two.policy, one.policy).controls(rows, two.policy, sampling=sampling)
    weights = [math.exp(row.engine_logprobs[0]) for row in rows]
    assert sum(weights) == pytest.approx(1.0)
    assert sum(w * c for w, c in zip(weights, controls, strict=True)) == pytest.approx(0.0, abs=1e-6)
    assert max(map(abs, controls)) > 1e-3


def test_a_control_is_named_with_what_it_left(folders):
    found = compare(folders / "one", folders / "two", task_of(), control=folders / "two", samples=2, **SAMPLED)
    plain = compare(folders / "one", folders / "two", task_of(), samples=2, **SAMPLED)
    assert found.difference.control_share == pytest.approx((found.difference.se / plain.difference.se) ** 2, rel=1e-6)
    assert found.means == plain.means


def test_json_and_documents(folders):
    found = compare(folders / "one", folders / "one", task_of(constant), max_new_tokens=2)
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["verdict"] == "undecided"
    assert document["difference"]["interval"]["low"] is None
    assert any("the reward is constant" in note for note in document["notes"])
    looked = compare(folders / "one", folders / "two", task_of(), look_every=5, **SAMPLED)
    assert [block.title for block in looked.document().blocks] == ["Models", "Difference", "Figures"]
    assert [row[0] for row in looked.document().blocks[1].rows] == [
        "after 30 prompts, undecided",
        "after 35 prompts, undecided",
        "after 40 prompts, undecided",
    ]
    text = compare(folders / "one", folders / "two", task_of(), margin=0.5, **SAMPLED).document().markdown()
    assert "| standard error | 0." in text
    assert "unpaired averaging needs" in text


def test_what_a_model_cannot_read_is_left_out_for_all(folders, make_policy, tmp_path):
    """A tagger reads no prompt without words: skipped where the data may have holes, an error where not."""
    models = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, model in enumerate(models, 1):
        make_policy("tiny-bert", kind="tagger", labels=("O", "B-X"), seed=seed).save(model)
    rows = [{"prompt": f"word {i}", "words": [] if i % 4 == 0 else ["word", "x"]} for i in range(24)]
    task = Task(prompts=["x"], eval_prompts=rows, reward=vowels, labels=("O", "B-X"), strict=False)
    found = compare(*models, task, kind="tagger")
    assert found.difference.num_prompts == 18
    assert "6 left out: what the model cannot read or write" in found.notes
    with pytest.raises(DataError, match="has no words"):
        compare(*models, dataclasses.replace(task, strict=True), kind="tagger")


def test_what_cannot_be_compared_is_refused(folders):
    one, two = folders / "one", folders / "two"
    with pytest.raises(ModelError, match="is no folder"):
        compare(one, "nowhere", task_of())
    with pytest.raises(DataError, match="no held-out prompts"):
        compare(one, two, Task(prompts=["x"], reward=vowels))
    with pytest.raises(DataError, match="1 prompts in 1 cluster"):
        compare(one, two, task_of(), num_prompts=1, max_new_tokens=2)
    with pytest.raises(DataError, match="no column 'chapter'"):
        compare(one, two, task_of(), cluster="chapter")
    with pytest.raises(RewardError, match="no reward reports 'charm'"):
        compare(one, two, task_of(), metric="charm", max_new_tokens=2)
    with pytest.raises(RecipeError, match="holds for one look only"):
        compare(one, two, task_of(), method="t", look_every=5)
    with pytest.raises(RecipeError, match="all 4 samples of a prompt are the same"):
        compare(one, two, task_of(), samples=4)
    with pytest.raises(RecipeError, match="no luck for a control"):
        compare(one, two, task_of(), control=two)
    with pytest.raises(RecipeError, match="has another tokenizer"):
        compare(one, two, task_of(), control=folders / "other", temperature=1.0)
    with pytest.raises(RecipeError, match="a task must be named"):
        compare(one, two)
