"""Branches of a real engine beside the oracle: a tiny model of which every answer can be listed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from upslope.engines.local import LocalEngine
from upslope.errors import DataError
from upslope.estimators import gae, row_ids, row_sum
from upslope.evaluation.advantage_error import squared_error
from upslope.evaluation.arms import Arm
from upslope.evaluation.branching import decide, discounted, drawn
from upslope.evaluation.oracle import (
    enumerate_sequences,
    language_model_logits,
    num_prefixes,
    score_rewards,
    solve,
    tabular_logits,
)
from upslope.policies.sampling import warp
from upslope.records import Prompt
from upslope.rewards import RewardTerm, Scorer

STEPS, GAMMA, BRANCHES, ROWS = 3, 0.9, 8, 80


def vowels(completion):
    """A reward between 0 and 1 of the text."""
    return (1 + sum(ord(letter) * (place + 3) for place, letter in enumerate(completion))) % 17 / 17


def constant(completion):
    return 1.0


def fails(completion):
    raise ValueError(completion)


class ArmOf(Arm):
    """An arm around a policy that is made already."""

    def __init__(self, policy, engine):
        self.name, self.policy, self._engine, self._own = "given", policy, engine, engine
        self._engine.load(policy, version=0)
        self.seed, self.tokens, self.seconds, self.noise_s = 0, 0, 0.0, 0.0


def scorer(reward):
    return Scorer([RewardTerm(reward)], timeout_s=10, isolation="none")


@pytest.fixture(scope="module")
def arm(configured_policy):
    policy = configured_policy("tiny-llama")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    policy.model.generation_config.eos_token_id = [20]
    policy.tokenizer.eos_token_id = 20
    return ArmOf(policy, LocalEngine(max_rows=64, cache_gib=0.1, kernels="torch"))


@pytest.fixture(scope="module")
def prompts(arm):
    return [arm.policy.encode(Prompt(id=i, content=f"{i}{i + 1}=")) for i in range(4)]


@pytest.fixture(scope="module")
def setting(sampling):
    return sampling(1.3, 4, max_new_tokens=STEPS)


@pytest.fixture(scope="module")
def decisions(arm, prompts, setting):
    clusters = {prompt.id: prompt.id for prompt in prompts}
    how = {"rows": ROWS, "branches": BRANCHES, "sampling": setting, "gamma": GAMMA, "seed": 1}
    with scorer(vowels) as scored:
        return decide(arm, scored, prompts, clusters, **how)


@pytest.fixture(scope="module")
def oracle(arm, prompts, setting):
    """Exact advantages, values, and variances of the return, by (prompt id, prefix)."""
    vocabulary, found = len(arm.policy.tokenizer), {}
    for prompt in prompts:
        plain = language_model_logits(arm.policy.model, prompt.tokens, range(vocabulary))

        def logits(prefixes, plain=plain):
            return warp(plain(prefixes).detach(), setting).double()

        tree = enumerate_sequences(logits, horizon=STEPS, end=20)
        text = arm.policy.tokenizer.decode
        rewards = score_rewards(
            tree, lambda s, text=text: vowels(text([t for t in s if t != 20], skip_special_tokens=True))
        )
        exact, squared = solve(tree, rewards, gamma=GAMMA), solve(tree, rewards**2, gamma=GAMMA**2)
        of_actions = squared.action_values - exact.action_values**2
        of_states = squared.values - exact.values**2
        for state, prefix in enumerate(tree.prefixes):
            found[prompt.id, prefix] = exact.advantages[state], exact.values[state], of_actions[state], of_states[state]
    return found


def truths(decisions, oracle):
    """Exact advantage and exact variance of A_hat, of every decision."""
    true, variance = [], []
    for row, step in zip(decisions.row, decisions.step, strict=True):
        rollout = decisions.rollouts[row]
        advantages, _, of_actions, of_state = oracle[rollout.prompt.id, rollout.actions[:step]]
        action = rollout.actions[step]
        true.append(float(advantages[action]))
        variance.append(float(of_actions[action].clamp(min=0) + of_state) / BRANCHES)
    return np.array(true), np.array(variance)


def test_branches_estimate_the_oracles_advantages(decisions, oracle):
    """z = (A_hat - A) / se over 320 decisions has mean 0 and mean square 1, and the noise is estimated without bias."""
    true, variance = truths(decisions, oracle)
    assert len(true) == 4 * ROWS
    assert np.std(true) > 0.1
    assert {int(step) for step in decisions.step} == {0, 1, 2}
    z = (decisions.truth.advantages - true) / np.sqrt(variance)
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * (z**2).std() / math.sqrt(n)
    excess = decisions.truth.noise - variance
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(n)
    for half in decisions.truth.halves:
        assert abs(((half - true) / np.sqrt(2 * variance)).mean()) < 4 / math.sqrt(n)


def test_the_error_of_gae_with_exact_values_is_that_of_enumeration(decisions, oracle):
    """The noise-subtracted error of sampled rows agrees with the exact error on the same decisions."""
    true, _ = truths(decisions, oracle)
    estimates = []
    for row, step in zip(decisions.row, decisions.step, strict=True):
        rollout = decisions.rollouts[row]
        states = [oracle[rollout.prompt.id, rollout.actions[:t]][1] for t in range(len(rollout.actions))]
        rewards, count = torch.tensor(rollout.rewards).double(), torch.tensor([len(states)])
        nothing = torch.zeros(1, dtype=torch.float64)
        estimates.append(float(gae(rewards, torch.stack(states), count, nothing, gamma=GAMMA, lam=0.9)[step]))
    estimates = np.array(estimates)
    along = estimates * decisions.truth.advantages - estimates * true
    assert abs(along.mean()) < 4 * along.std() / math.sqrt(len(along))
    exact = (estimates - true) ** 2
    each = squared_error(estimates, decisions.truth) - exact
    assert exact.mean() > 0.01
    assert abs(each.mean()) < 4 * each.std() / math.sqrt(len(each))


def test_returns_less_any_baseline_of_the_state_have_slope_1(decisions, oracle):
    """E[(G - b(s)) A] = E[A^2] for b = V and for no baseline at all: the policy gradient is unbiased by either."""
    true, _ = truths(decisions, oracle)
    returns, values = [], []
    for row, step in zip(decisions.row, decisions.step, strict=True):
        rollout = decisions.rollouts[row]
        returns.append(discounted(rollout.rewards, step, GAMMA))
        values.append(float(oracle[rollout.prompt.id, rollout.actions[:step]][1]))
    returns, advantages, noise = np.array(returns), decisions.truth.advantages, decisions.truth.noise
    for baseline in (np.array(values), 0.0):
        excess = (returns - baseline) * advantages - (advantages**2 - noise)
        assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(len(excess))
    assert np.mean(returns * true) > 0.005


def test_rows_and_branches_share_no_luck(decisions, arm, prompts, setting):
    """Tokens are counted; the branches of a decision are not its row again and again."""
    assert decisions.row_tokens == sum(len(rollout.actions) for rollout in decisions.rollouts)
    open_ = sum(
        2 * BRANCHES * (len(decisions.rollouts[row].actions) > step)
        for row, step in zip(decisions.row, decisions.step, strict=True)
    )
    assert 0 < decisions.branch_tokens <= open_ * STEPS
    rows = decisions.rollouts[:40]
    new = arm.branch(rows, [0] * len(rows), num_branches=1, sampling=setting, seed=1 + (1 << 40))
    assert sum(a.actions == b.actions for a, b in zip(new, rows, strict=True)) < 12


def test_rewards_that_are_constant_or_fail(arm, prompts, setting):
    clusters = {prompt.id: prompt.id for prompt in prompts}
    how = {"rows": 2, "branches": 4, "sampling": setting, "gamma": 1.0, "seed": 1}
    with scorer(constant) as scored:
        found = decide(arm, scored, prompts, clusters, **how)
    assert not found.truth.advantages.any()
    assert not found.truth.noise.any()
    with scorer(fails) as scored, pytest.raises(DataError, match="none of 8 rows could be scored: fails: raised"):
        decide(arm, scored, prompts, clusters, **how)


def test_decisions_are_drawn_from_all_actions_alike():
    """400 draws of 5 from rows of 1, 2 and 6 actions: each of the nine 222 times, within chance; none twice at once."""
    lengths, generator = np.array([1, 2, 6]), np.random.default_rng(0)
    counts = np.zeros(9)
    for _ in range(400):
        row, step = drawn(lengths, 5, generator)
        assert (step < lengths[row]).all()
        places = np.array([0, 1, 3])[row] + step
        assert len(set(places)) == 5
        counts[places] += 1
    assert counts.sum() == 2000
    assert ((counts - 400 * 5 / 9) ** 2 / (400 * 5 / 9 * 4 / 9)).sum() < 9 + 4 * 18**0.5


def test_one_decision_from_each_row_would_be_biased():
    """By enumeration of rows that may end at any step: over all actions advantages sum to 0 and G A to A^2; weighted so
    that every row counts once, they do not, as an action's weight then tells its future."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(num_prefixes(3, horizon=4), 3, generator=generator, dtype=torch.float64)
    tree = enumerate_sequences(tabular_logits(table), horizon=4, end=2)
    rewards = score_rewards(tree, lambda sequence: 1.0 if len(sequence) < 3 else 0.1 * sum(sequence))
    exact = solve(tree, rewards, gamma=1.0)
    advantages, count = tree.pack(exact.advantages), tree.num_actions
    returns = row_sum(tree.pack(rewards), count)[row_ids(count)]
    for figure in (advantages, returns * advantages - advantages**2):
        assert float((tree.probabilities * row_sum(figure, count)).sum()) == pytest.approx(0.0, abs=1e-12)
        assert float((tree.probabilities * row_sum(figure, count) / count).sum()) > 0.02


def test_discounted_by_hand():
    assert discounted((1.0, 2.0, 4.0), 1, 0.5) == 4.0


def test_of_one_label_a_row_the_advantage_is_exact(make_policy, sampling):
    """r(a) - sum over b of pi(b) r(b), with the probabilities of the plain model."""
    from upslope.engines.single_pass import SinglePassEngine

    labels = ("good", "bad", "odd")
    policy = make_policy("tiny-bert", kind="classifier", labels=labels, seed=3)
    worth = {"good": 1.0, "bad": 0.25, "odd": -1.0}

    def value(completion):
        return worth[completion]

    labelling = ArmOf(policy, SinglePassEngine())
    texts = [policy.encode(Prompt(id=i, content=f"text {i}")) for i in range(5)]
    with scorer(value) as scored:
        how = {"rows": 3, "branches": 4, "sampling": sampling(0.7), "gamma": 1.0, "seed": 1}
        found = decide(labelling, scored, texts, {i: i for i in range(5)}, **how)
    assert not found.truth.noise.any()
    assert found.branch_tokens == 0
    for rollout, advantage in zip(found.rollouts, found.truth.advantages, strict=True):
        with torch.no_grad():
            logits = policy.model(torch.tensor([rollout.prompt.tokens])).logits[0].double() / 0.7
        expected = worth[rollout.text] - float(logits.softmax(0) @ torch.tensor(list(worth.values())).double())
        assert advantage == pytest.approx(expected, abs=1e-5)
