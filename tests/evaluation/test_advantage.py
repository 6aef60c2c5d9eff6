"""What advantages say of a difference, and what they do not: exact, by enumeration of two small policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from upslope.estimators import gae, row_sum
from upslope.evaluation.control import centred, without_luck
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, score_rewards, solve, tabular_logits

K, HORIZON = 3, 3


class World:
    """Two policies, old and new, over every sequence of three of three symbols, paid by a score of the whole."""

    def __init__(self, seed=0, shift=0.6):
        generator = torch.Generator().manual_seed(seed)
        shape = (num_prefixes(K, horizon=HORIZON), K)
        old = torch.randn(shape, generator=generator, dtype=torch.float64)
        new = old + shift * torch.randn(shape, generator=generator, dtype=torch.float64)
        pay = torch.rand(K**HORIZON, generator=generator, dtype=torch.float64).tolist()
        self.old, self.new = (enumerate_sequences(tabular_logits(t), horizon=HORIZON, end=None) for t in (old, new))
        self.rewards = score_rewards(self.old, lambda s: pay[s[0] * 9 + s[1] * 3 + s[2]])
        self.value_old, self.value_new = (solve(tree, self.rewards, gamma=1.0) for tree in (self.old, self.new))
        self.truth = float(self.value_new.objective - self.value_old.objective)

    def summed(self, per_action, tree):
        """E over the tree's own sequences of the sum over a row."""
        return float((tree.probabilities * row_sum(per_action, tree.num_actions)).sum())

    def gae(self, lam):
        """GAE [M] along every sequence, with the exact values of the old policy as critic."""
        values, paid = self.old.pack(self.value_old.values), self.old.pack(self.rewards)
        bootstrap = torch.zeros(len(self.old.num_actions), dtype=torch.float64)
        return gae(paid, values, self.old.num_actions, bootstrap, gamma=1.0, lam=lam)


@pytest.fixture(scope="module")
def world():
    return World()


def test_the_performance_difference_is_the_expected_sum_of_old_advantages(world):
    """J(p') - J(p) = E_p'[sum_t A^p(s_t, a_t)]. Source: Kakade & Langford 2002, lemma 6.1."""
    advantages = world.old.pack(world.value_old.advantages)
    assert abs(world.truth) > 0.01
    assert world.summed(advantages, world.new) == pytest.approx(world.truth, abs=1e-12)


def test_a_model_judged_by_its_own_critic_is_worth_nothing(world):
    """E_p[sum_t A^p] = 0, whatever p is worth."""
    for tree, values in ((world.old, world.value_old), (world.new, world.value_new)):
        assert world.summed(tree.pack(values.advantages), tree) == pytest.approx(0.0, abs=1e-12)


def test_whitened_advantages_carry_no_information(world):
    """Their mean over the batch is 0 for either model, by construction."""
    advantages = world.old.pack(world.value_old.advantages)
    weights = world.new.weights
    mean = (weights * advantages).sum() / weights.sum()
    spread = ((weights * (advantages - mean) ** 2).sum() / weights.sum()).sqrt()
    assert float((weights * (advantages - mean) / spread).sum()) == pytest.approx(0.0, abs=1e-12)


def test_a_sum_of_gae_is_the_difference_for_lam_0_only():
    """lam counts the surprise at step t again at every step before it: 3.7 times the difference, or another sign."""
    world = World(seed=2)
    assert world.summed(world.gae(0.0), world.new) == pytest.approx(world.truth, abs=1e-12)
    assert world.truth == pytest.approx(0.0371, abs=5e-5)
    assert world.summed(world.gae(0.95), world.new) == pytest.approx(0.1386, abs=5e-5)
    deltas = world.gae(0.0).view(-1, HORIZON)
    by_hand = (deltas * torch.tensor([1.0, 1.95, 1.0 + 0.95 + 0.95**2], dtype=torch.float64)).sum(1)
    assert float((world.new.probabilities * by_hand).sum()) == pytest.approx(0.1386, abs=5e-5)
    other = World(seed=3)
    assert other.truth > 0.002 > -0.03 > other.summed(other.gae(0.95), other.new)


def test_a_value_critic_on_common_prompts_saves_nothing(world):
    """With gamma = 1 the values telescope: every row's sum is its reward less V(s0), which a pair has in common."""
    sums = row_sum(world.gae(0.0), world.old.num_actions)
    rewards = row_sum(world.old.pack(world.rewards), world.old.num_actions)
    assert_close(sums[3] - sums[17], rewards[3] - rewards[17], rtol=0, atol=1e-12)
    assert_close(sums, rewards - world.value_old.objective, rtol=0, atol=1e-12)


def control_of(tree, action_values):
    """The control summed over each row [R]."""
    states, actions = tree.states, tree.actions
    per_action = centred(action_values[states], tree.logprobs[states], actions)
    return row_sum(per_action, tree.num_actions)


def test_the_centred_control_has_mean_0_whatever_the_critic(world):
    nonsense = torch.randn(world.old.logprobs.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for values in (world.value_old.action_values, nonsense):
        for tree in (world.old, world.new):
            assert float((tree.probabilities * control_of(tree, values)).sum()) == pytest.approx(0.0, abs=1e-12)
    elsewhere = row_sum(world.old.pack(world.value_old.advantages), world.new.num_actions)
    assert abs(float((world.new.probabilities * elsewhere).sum())) > 0.01, "centred under another policy it moves"


def test_the_true_critic_takes_all_of_the_luck_out(world):
    """With f = Q of the policy that sampled, reward - control is J for every single row: R^2 = 1."""
    control = control_of(world.new, world.value_new.action_values)
    rewards = row_sum(world.new.pack(world.rewards), world.new.num_actions)
    assert_close(rewards - control, world.value_new.objective.expand(27), rtol=0, atol=1e-12)


def test_a_banned_action_is_not_read():
    logprobs = torch.tensor([[0.25, 0.75, 0.0]]).log()
    values = torch.tensor([[1.0, 3.0, float("nan")]])
    assert centred(values, logprobs, torch.tensor([1])).item() == pytest.approx(3.0 - 2.5)


def drawn(repetitions, n, quality, seed):
    """Differences [R, n] with mean .2 of which a control explains the share `quality`, and two controls [R, n, 2]."""
    generator = np.random.default_rng(seed)
    luck, rest = generator.normal(size=(2, repetitions, n))
    useless = generator.exponential(size=(repetitions, n)) - 1.0
    differences = 0.2 + np.sqrt(quality) * luck + np.sqrt(1 - quality) * rest
    return differences, np.stack((luck, useless), -1)


@pytest.mark.parametrize("quality", [0.0, 0.75])
def test_the_coefficient_is_estimated_so_a_bad_critic_cannot_hurt(quality):
    """2,000 repetitions of 60 prompts: the mean stays, the variance is 1 - R^2 (times about 1 + 2 / 60)."""
    differences, controls = drawn(2_000, 60, quality, seed=1)
    adjusted = without_luck(differences, controls).mean(1)
    assert abs(adjusted.mean() - 0.2) <= 3 * adjusted.std() / np.sqrt(2_000)
    assert adjusted.var() * 60 == pytest.approx((1 - quality) * (1 + 2 / 60), rel=0.08)


def test_coefficients_come_from_other_clusters_only():
    """Changing a prompt moves no other prompt of its cluster but through what was its own: checked by moving one."""
    differences, controls = drawn(1, 30, 0.5, seed=2)
    clusters = np.repeat(np.arange(10), 3)
    before = without_luck(differences[0], controls[0], clusters)
    moved = differences[0].copy()
    moved[0] += 5.0
    after = without_luck(moved, controls[0], clusters)
    same_fold = np.unique(clusters, return_inverse=True)[1] % 5 == 0
    assert_close(after[same_fold][1:], before[same_fold][1:], rtol=0, atol=1e-12)
    assert np.abs(after[~same_fold] - before[~same_fold]).max() > 1e-3


def test_a_control_that_never_varies_does_nothing():
    differences, _ = drawn(1, 30, 0.5, seed=3)
    assert_close(without_luck(differences[0], np.zeros((30, 2))), differences[0], rtol=0, atol=1e-12)
