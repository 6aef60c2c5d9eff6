"""Errors of estimators beside a truth that is itself estimated: unbiased, corrected, with intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from upslope.errors import DataError
from upslope.estimators import gae
from upslope.evaluation.advantage_error import Truth, agreements, rank_correlations, reliability, squared_error
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, score_rewards, solve, tabular_logits


class Problem:
    """n decisions whose ends earn 0 or 1 with known chances after the action and before it; an estimate of each."""

    def __init__(self, n=40, prompts=20, seed=0):
        self.generator = np.random.default_rng(seed)
        self.clusters = np.arange(n) % prompts
        self.before = self.generator.uniform(0.1, 0.9, n)
        self.after = np.clip(self.before + self.generator.normal(0, 0.25, n), 0, 1)
        self.true = self.after - self.before
        self.estimates = np.stack([0.7 * self.true + self.generator.normal(0, 0.1, n), np.zeros(n), self.true])

    def branched(self, k, repetitions=None):
        """Truths from k branches a side."""
        shape = (len(self.true), k)
        for _ in range(repetitions or 1):
            drawn = [self.generator.random(shape) < chance[:, None] for chance in (self.after, self.before)]
            yield Truth.of_branches(drawn[0].astype(float), drawn[1].astype(float), self.clusters)


def test_the_noise_subtracted_error_is_unbiased():
    """Over 3,000 sets of branches its mean is the exact error, though each A_hat is off by more than that."""
    problem = Problem()
    truths = list(problem.branched(4, 3000))
    exact = ((problem.estimates - problem.true) ** 2).mean(1)
    found = np.array([squared_error(problem.estimates, truth).mean(1) for truth in truths])
    se = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - exact) < 4 * se).all()
    spread = np.array([truth.spread for truth in truths])
    assert abs(spread.mean() - (problem.true**2).mean()) < 4 * spread.std() / np.sqrt(len(spread))
    naive = np.mean([((problem.estimates - truth.advantages) ** 2).mean(1) for truth in truths], 0)
    assert (naive - exact > 20 * se).all(), "without the subtraction it is far off"


def test_a_perfect_estimator_has_error_0_and_saying_nothing_has_1():
    problem = Problem(n=400, prompts=100)
    (truth,) = problem.branched(16)
    _, nothing, perfect = agreements(problem.estimates, truth, reference=1, num_resamples=200)
    assert nothing.error.estimate == pytest.approx(1.0, abs=1e-12)
    assert (nothing.error.low, nothing.error.high) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert nothing.rank is None
    assert nothing.sign.estimate == 0.5
    assert nothing.more_error.estimate == 0.0
    assert perfect.error.low < 0.0 < perfect.error.high < 0.2
    assert perfect.more_error.high < -0.8
    assert perfect.sign.estimate > 0.95


def test_the_rank_correlation_is_corrected_for_noise():
    """With four branches a perfect estimator seems to order at .8 only; corrected it is near 1, others near theirs."""
    problem = Problem(n=4000, prompts=400)
    (truth,) = problem.branched(4)
    noisy, _, perfect = agreements(problem.estimates, truth, reference=1, num_resamples=50)
    own = float(rank_correlations(problem.estimates[:1], problem.true)[0])
    assert perfect.rank.estimate < 0.85
    assert perfect.rank_corrected.estimate == pytest.approx(1.0, abs=0.03)
    assert noisy.rank_corrected.estimate == pytest.approx(own, abs=0.03)
    (again,) = problem.branched(4)
    repeated = float(rank_correlations(truth.advantages[None], again.advantages)[0])
    assert reliability(truth) == pytest.approx(repeated, abs=0.03)


def test_rank_correlation_is_spearmans():
    """By the definition of the mid-ranks, ties included: computed by hand."""
    values, other = np.array([3.0, 1.0, 1.0, 7.0]), np.array([10.0, 20.0, 30.0, 40.0])
    ranks = np.array([3.0, 1.5, 1.5, 4.0]) - 2.5
    expected = (ranks @ np.array([-1.5, -0.5, 0.5, 1.5])) / np.sqrt((ranks**2).sum() * 5.0)
    assert rank_correlations(values[None], other)[0] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(rank_correlations(np.ones((1, 4)), other)[0])
    weights = np.array([[1.0, 2.0, 0.0, 3.0]])
    repeated = rank_correlations(np.array([[3.0, 1.0, 1.0, 7.0, 7.0, 7.0]]), np.array([10.0, 20, 20, 40, 40, 40]))
    assert rank_correlations(values[None], other, weights)[0] == pytest.approx(repeated, abs=1e-12)


def test_intervals_cover_the_true_error():
    """120 experiments of 30 prompts with two decisions each that hang together; the true error is .125."""
    covered, total = 0, 120
    for seed in range(total):
        generator = np.random.default_rng(seed)
        level = generator.normal(0, 0.3, 30).repeat(2)
        true, clusters = level + generator.normal(0, 0.3, 60), np.arange(30).repeat(2)
        estimate = true - 0.5 * level
        halves = true + generator.normal(0, 0.2, (2, 60))
        noise = np.full(60, 0.02)
        truth = Truth(halves.mean(0), noise, halves, clusters)
        (found,) = agreements(estimate[None], truth, reference=0, num_resamples=100, seed=seed)
        covered += found.error.low <= 0.25 * 0.09 / 0.18 <= found.error.high
    assert (
        0.86 <= covered / total <= 0.99
    )  # percentile intervals of a ratio over 30 clusters fall a little short of .95


def test_the_error_of_gae_with_the_exact_values_by_enumeration():
    """With V exact, r + gamma V' - V is A itself, so GAE's error is the advantages of the actions to come:
    E[(GAE_t - A_t)^2] = sum over u > t of (gamma lam)^(2 (u - t)) E[A_u^2], which martingale differences give."""
    gamma, steps, symbols = 0.9, 3, 3
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(num_prefixes(symbols, horizon=steps), symbols, generator=generator, dtype=torch.float64)
    tree = enumerate_sequences(tabular_logits(table), horizon=steps, end=None)
    pay = torch.rand(symbols**steps, generator=generator, dtype=torch.float64).tolist()
    rewards = score_rewards(tree, lambda s: pay[s[0] * 9 + s[1] * 3 + s[2]])
    exact = solve(tree, rewards, gamma=gamma)
    true, chances = tree.pack(exact.advantages), tree.probabilities
    squares = (chances[:, None] * true.view(-1, steps) ** 2).sum(0)
    nothing = torch.zeros(len(chances), dtype=torch.float64)
    for lam in (0.0, 0.5, 0.95, 1.0):
        found = gae(tree.pack(rewards), tree.pack(exact.values), tree.num_actions, nothing, gamma=gamma, lam=lam)
        error = (chances[:, None] * (found - true).view(-1, steps) ** 2).sum(0)
        later = [sum((gamma * lam) ** (2 * (u - t)) * squares[u] for u in range(t + 1, steps)) for t in range(steps)]
        assert_close(error, torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in later]), rtol=0, atol=1e-12)
    assert error[0] > 0.01


def test_what_cannot_be_said_is_none():
    ones = np.ones(6)
    flat = Truth.of_branches(np.ones((6, 4)), np.ones((6, 4)), np.arange(6))
    (found,) = agreements(ones[None], flat, reference=0, num_resamples=20)
    assert (found.error, found.rank, found.rank_corrected, found.sign) == (None,) * 4
    assert not flat.sure.any()
    with pytest.raises(DataError, match="two prompts"):
        agreements(ones[None], Truth.exact(ones, np.zeros(6)), reference=0)
    with pytest.raises(DataError, match="not a finite number"):
        agreements(np.nan * ones[None], flat, reference=0)
