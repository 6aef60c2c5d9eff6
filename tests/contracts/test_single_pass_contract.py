"""What the single-pass engine promises: labels drawn from the policy's distribution, in one forward a prompt."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import DataError, ModelError
from upslope.losses import ratio_statistics
from upslope.records import Prompt, collate

TEXTS = ("good film", "bad", "so so and so on", "none of it")


def prompts_of(policy, texts=TEXTS):
    return [policy.encode(Prompt(id=10 + i, content=text)) for i, text in enumerate(texts)]


@pytest.fixture
def policy(labelled_kind):
    return labelled_kind.build()


@pytest.fixture
def engine(make_single_pass_engine, policy):
    engine = make_single_pass_engine()
    engine.load(policy, version=3)
    return engine


def same(rollout):
    return rollout.prompt.id, rollout.sample, rollout.actions, rollout.text


def test_rows_say_what_was_decided(engine, policy, sampling):
    """One decision a text or a word; the row's text is what the reward sees; every label is drawn at last."""
    rollouts = engine.sample(prompts_of(policy), group_size=30, sampling=sampling(2.0), seed=1)
    assert [(r.group, r.sample) for r in rollouts] == [(g, s) for g in range(4) for s in range(30)]
    for rollout in rollouts:
        decisions = 1 if type(policy).__name__ == "ClassifierPolicy" else len(rollout.prompt.content.split())
        assert len(rollout.actions) == len(rollout.positions) == len(rollout.engine_logprobs) == decisions
        assert rollout.tokens == rollout.prompt.tokens
        assert rollout.text.split() == [policy.labels[action] for action in rollout.actions]
        assert [piece.strip() for piece in policy.pieces(rollout.actions)] == rollout.text.split()
        assert rollout.stop_reason == "action"
        assert rollout.terminated
        assert rollout.version == 3
        assert rollout.failure is None
    assert {a for r in rollouts for a in r.actions} == set(range(len(policy.labels)))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, None), (0.6, None, None), (1.5, 2, None), (1.0, None, 0.6)]
)
def test_engine_logprobs_are_the_trainers(engine, policy, sampling, temperature, top_k, top_p):
    """CHECKS 15, 18, 22: at any sampling the engine's log-probabilities equal the recomputed."""
    setting = sampling(temperature, top_k, top_p)
    batch, empty = collate(engine.sample(prompts_of(policy), group_size=6, sampling=setting, seed=1))
    assert not empty
    with torch.no_grad():
        recomputed = policy.score(batch, sampling=setting).logprobs
    assert batch.engine_logprobs.std() > 0.1
    assert_close(batch.engine_logprobs, recomputed, rtol=0, atol=1e-5)
    gap = ratio_statistics(recomputed, batch.engine_logprobs)
    assert abs(gap.k3) < 1e-8
    assert gap.max_deviation < 1e-5


def test_engine_logprobs_are_the_models(engine, labelled_kind, policy, sampling):
    """They are those of the plain model, one row at a time."""
    for rollout in engine.sample(prompts_of(policy), group_size=6, sampling=sampling(), seed=2):
        expected = labelled_kind.logits(policy, rollout).log_softmax(1)[range(len(rollout.actions)), rollout.actions]
        assert_close(torch.tensor(rollout.engine_logprobs), expected, rtol=0, atol=1e-5)


def test_after_a_step_the_engine_has_the_new_weights(engine, policy, sampling):
    """CHECKS 21: after an optimiser step and load, engine and trainer agree, and the old numbers are gone."""
    before = engine.sample(prompts_of(policy), group_size=2, sampling=sampling(), seed=1)
    batch, _ = collate(before)
    optimizer = torch.optim.AdamW(policy.module.parameters(), lr=1e-2)
    policy.score(batch, sampling=sampling()).logprobs.mean().backward()
    optimizer.step()
    engine.load(policy, version=4)
    after, _ = collate(engine.sample(prompts_of(policy), group_size=2, sampling=sampling(), seed=1))
    with torch.no_grad():
        assert_close(policy.score(after, sampling=sampling()).logprobs, after.engine_logprobs, rtol=0, atol=1e-5)
        assert (policy.score(batch, sampling=sampling()).logprobs - batch.engine_logprobs).abs().max() > 1e-2
    assert set(after.version.tolist()) == {4}


def test_same_seed_same_draws_in_any_company(labelled_kind, make_single_pass_engine, policy, engine, sampling):
    """CHECKS 39: a row depends on seed, prompt and sample alone: in a batch of 1 and of 64, and in any order."""
    texts = [
        f"{word} {other}" for word in "abcdefgh" for other in ("x", "yes", "zero and one", "w w", "q", "u", "v", "it")
    ]
    prompts = prompts_of(policy, texts)
    assert len(prompts) == 64
    whole = engine.sample(prompts, group_size=3, sampling=sampling(), seed=7)
    again = make_single_pass_engine()
    again.load(labelled_kind.build(), version=0)
    assert list(map(same, again.sample(prompts, group_size=3, sampling=sampling(), seed=7))) == list(map(same, whole))
    alone = [r for p in prompts for r in engine.sample([p], group_size=3, sampling=sampling(), seed=7)]
    assert list(map(same, alone)) == list(map(same, whole))
    backwards = engine.sample(prompts[::-1], group_size=3, sampling=sampling(), seed=7)
    assert sorted(map(same, backwards)) == sorted(map(same, whole))
    other = engine.sample(prompts, group_size=3, sampling=sampling(), seed=8)
    assert sum(map(lambda a, b: a.actions != b.actions, whole, other)) > len(whole) / 4
    twice = engine.sample(prompts[:1] * 2, group_size=40, sampling=sampling(3.0), seed=7)
    assert [r.sample for r in twice] == list(range(80))
    assert [r.actions for r in twice[:40]] != [r.actions for r in twice[40:]]


def test_answers_are_distributed_as_the_policy_says(engine, labelled_kind, policy, sampling):
    """Chi-square of 3,000 rows, a whole answer each, against the products of the plain model's probabilities."""
    prompt = prompts_of(policy, ["so so"])[0]
    rollouts = engine.sample([prompt], group_size=3000, sampling=sampling(0.7), seed=5)
    blank = rollouts[0]
    observed, wanted = [], []
    for actions in itertools.product(range(len(policy.labels)), repeat=len(blank.actions)):
        logits = labelled_kind.logits(policy, blank.replace(actions=actions)).double() / 0.7
        logprob = logits.log_softmax(1)[range(len(actions)), actions].sum()
        wanted.append(3000 * math.exp(logprob))
        observed.append(sum(r.actions == actions for r in rollouts))
    assert sum(wanted) == pytest.approx(3000)
    assert [n for n, expected in zip(observed, wanted, strict=True) if expected == 0] == [0] * wanted.count(0.0)
    large = [(n, expected) for n, expected in zip(observed, wanted, strict=True) if expected > 5]
    statistic, degrees = sum((n - expected) ** 2 / expected for n, expected in large), len(large)
    assert degrees >= 4
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def test_greedy_takes_the_likeliest_label(engine, labelled_kind, policy, sampling):
    rollouts = engine.sample(prompts_of(policy), group_size=2, sampling=sampling(0.0), seed=1)
    for rollout in rollouts:
        logits = labelled_kind.logits(policy, rollout)
        assert rollout.actions == tuple(logits.argmax(1).tolist())
        best = logits.log_softmax(1).max(1).values
        assert_close(torch.tensor(rollout.engine_logprobs), best, rtol=0, atol=1e-5)
    assert [r.actions for r in rollouts[::2]] == [r.actions for r in rollouts[1::2]]


def test_every_answer_is_listed_once_with_its_probability(engine, labelled_kind, policy, sampling):
    """Probabilities sum to 1; of a cut support only what can be drawn; sequences of tags are too many to list."""
    prompts = prompts_of(policy)
    if labelled_kind.kind == "tagger":
        with pytest.raises(ModelError, match=r"algorithm.expected.*several decisions"):
            engine.every_answer(prompts, sampling=sampling())
        return
    rollouts = engine.every_answer(prompts, sampling=sampling(0.8))
    assert [(r.group, r.actions) for r in rollouts] == [(g, (a,)) for g in range(4) for a in range(len(policy.labels))]
    assert len({(r.prompt.id, r.sample) for r in rollouts}) == len(rollouts)
    for rollout in rollouts:
        expected = (labelled_kind.logits(policy, rollout) / 0.8).log_softmax(1)[0, rollout.actions[0]]
        assert rollout.engine_logprobs[0] == pytest.approx(float(expected), abs=1e-5)
        assert rollout.text == policy.labels[rollout.actions[0]]
    cut = engine.every_answer(prompts, sampling=sampling(0.8, 2))
    assert len(cut) == 2 * len(prompts)
    for group in range(len(prompts)):
        total = sum(math.exp(r.engine_logprobs[0]) for r in cut if r.group == group)
        assert total == pytest.approx(1.0, abs=1e-6)
    assert not any(r.failure for r in cut)


def test_non_finite_logits_are_reported(engine, policy, sampling):
    """A model that has broken down gives rows whose log-probabilities say so, never an invented number."""
    with torch.no_grad():
        next(policy.model.parameters())[:] = float("nan")
    for temperature in (0.0, 1.0):
        for rollout in engine.sample(prompts_of(policy), group_size=2, sampling=sampling(temperature), seed=1):
            assert not any(torch.isfinite(torch.tensor(rollout.engine_logprobs)))
            assert rollout.failure == "non-finite logits"
            assert max(rollout.actions) < len(policy.labels)


def test_sampling_leaves_the_policys_mode_alone(labelled_kind, make_single_pass_engine, sampling):
    """CHECKS 16: in train mode (checkpointing) the engine draws without dropout too."""
    policy = labelled_kind.build(checkpoint=True, **dict.fromkeys(labelled_kind.noisy, 0.1))
    engine = make_single_pass_engine()
    engine.load(policy, version=0)
    batch, _ = collate(engine.sample(prompts_of(policy), group_size=2, sampling=sampling(), seed=1))
    assert policy.module.training
    assert_close(policy.score(batch, sampling=sampling()).logprobs, batch.engine_logprobs, rtol=0, atol=1e-5)
    silent = labelled_kind.build(**dict.fromkeys(labelled_kind.noisy, 0.0))
    assert_close(silent.score(batch, sampling=sampling()).logprobs, batch.engine_logprobs, rtol=0, atol=1e-5)


def test_impossible_requests_are_refused(make_single_pass_engine, engine, policy, sampling):
    with pytest.raises(ModelError, match="load"):
        make_single_pass_engine().sample(prompts_of(policy), group_size=1, sampling=sampling(), seed=1)
    with pytest.raises(ModelError, match="labels, which a str does not give"):
        make_single_pass_engine().load("tiny-bert", version=0)
    with pytest.raises(DataError, match="prompt 10 has no"):
        prompts_of(policy, [""])
    assert engine.sample([], group_size=2, sampling=sampling(), seed=1) == []


def test_a_demonstration_is_the_row_of_its_labels(policy):
    """The labels become actions; unknown ones, or another number of them than decisions, are refused by name."""
    decisions = 1 if type(policy).__name__ == "ClassifierPolicy" else 3
    prompt = Prompt(id=4, content="one two three")
    wanted = [policy.labels[i] for i in (3, 4, 0)][:decisions]
    row = policy.demonstration(prompt, wanted[0] if decisions == 1 else wanted)
    assert row.actions == (3, 4, 0)[:decisions]
    assert row.text.split() == wanted
    assert row.tokens == policy.encode(prompt).tokens
    with pytest.raises(DataError, match=r"prompt 4 has the label 'odd', which is none of the model's 5: "):
        policy.demonstration(prompt, ["odd"] * decisions)
    with pytest.raises(DataError, match=rf"prompt 4 has 2 labels for {decisions} decisions"):
        policy.demonstration(prompt, [policy.labels[0]] * 2)


def test_branches_keep_the_first_decisions(engine, labelled_kind, policy, sampling):
    """What is kept stays with its log-probability; the others are drawn anew, each given the one before it."""
    rollouts = engine.sample(prompts_of(policy), group_size=4, sampling=sampling(), seed=1)
    kept = [row % (len(rollout.actions) + 1) for row, rollout in enumerate(rollouts)]
    branches = engine.branch(rollouts, kept, num_branches=12, sampling=sampling(), seed=2)
    assert [r.group for r in branches] == [row for row in range(16) for _ in range(12)]
    for branch in branches:
        row, count = rollouts[branch.group], kept[branch.group]
        assert branch.actions[:count] == row.actions[:count]
        expected = labelled_kind.logits(policy, branch).log_softmax(1)[range(len(branch.actions)), branch.actions]
        assert_close(torch.tensor(branch.engine_logprobs), expected, rtol=0, atol=1e-5)
        assert branch.text.split() == [policy.labels[action] for action in branch.actions]
    for row, rollout in enumerate(rollouts):
        found = {r.actions for r in branches if r.group == row}
        assert (len(found) == 1) == (kept[row] == len(rollout.actions))
