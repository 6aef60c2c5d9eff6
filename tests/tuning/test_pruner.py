"""Pruning: the level that it keeps under looks that share their prompts, and what it finds."""

import math
from itertools import pairwise

import numpy as np
import pytest

from upslope.tuning.pruner import log_evidence, outside, paired_looks, share_of_error


@pytest.mark.parametrize("planned", [1, 5, 40])
def test_the_error_is_shared_out_however_many_trials_follow(planned):
    shares = [share_of_error(incumbent, planned=planned, error=0.05) for incumbent in range(200_000)]
    assert sum(shares) <= 0.05
    assert sum(shares) == pytest.approx(0.05, rel=1e-4)
    assert len(set(shares[:planned])) == 1


def test_an_equal_setting_is_pruned_at_most_as_often_as_the_level_says():
    """1,000 trials as good as the incumbent, with four looks at the same prompts, whose differences hang together."""
    generator, level, pruned = np.random.default_rng(0), 0.2, 0
    for _ in range(1_000):
        common = generator.choice([-1.0, 0.0, 1.0], size=60, p=[0.3, 0.4, 0.3])
        looks = [np.where(generator.random(60) < 0.5, common, generator.permutation(common)) for _ in range(4)]
        looks = [look * generator.choice([-1.0, 1.0], size=60) for look in looks]  # mean 0 whatever `common` holds
        evidence = [log_evidence(looks[:k], num_looks=4, width=1.0, level=level) for k in range(1, 5)]
        assert all(a <= b for a, b in pairwise(evidence)), "evidence only grows"
        pruned += evidence[-1] >= -math.log(level)
    assert pruned / 1_000 <= level + 3 * math.sqrt(level * (1 - level) / 1_000)


def test_a_better_setting_is_not_pruned_and_a_much_worse_one_is():
    generator = np.random.default_rng(1)
    worse = [generator.choice([-1.0, 0.0, 1.0], size=100, p=[0.4, 0.5, 0.1]) for _ in range(5)]
    level = 0.05 / 21
    assert log_evidence(worse[:2], num_looks=5, width=1.0, level=level) >= -math.log(level)
    better = [-look for look in worse]
    assert log_evidence(better, num_looks=5, width=1.0, level=level) < 0
    assert log_evidence([], num_looks=5, width=1.0, level=level) == -math.inf


def test_evidence_is_the_mean_of_the_capitals():
    """By hand: the bets of the predictable plug-in, one prompt after the other."""
    look, level = np.array([-0.5, 0.25, -1.0]), 0.1
    capital, mean, variance, before = 1.0, 0.5, 0.25, 0.25
    values = [(1 - d) / 2 for d in look]
    for t, x in enumerate(values, 1):
        bet = min(math.sqrt(2 * math.log(2 / level) / (before * t * math.log1p(t))), 0.5 / 0.5)
        capital *= 1 + bet * (x - 0.5)
        mean = (0.5 + sum(values[:t])) / (t + 1)
        variance += (x - mean) ** 2
        before = variance / (t + 1)
    assert log_evidence([look], num_looks=2, width=1.0, level=level) == pytest.approx(math.log(capital / 2))


def test_looks_are_seed_by_seed_step_by_step_over_the_prompts_that_both_scored():
    incumbent = [{0: {"1": 0.0, "2": 0.0}, 5: {"1": 1.0, "2": 1.0, "3": 1.0}, 10: {"1": 1.0, "2": 1.0, "3": 1.0}}] * 2
    trial = [
        {0: {"1": 0.0, "2": 0.0}, 5: {"1": 0.5, "2": 1.0}, 7: {"1": 0.0}, 10: {"1": 0.0, "2": 0.0, "3": 1.0}},
        {5: {"1": 1.0, "2": 0.0, "3": 0.0}},
    ]
    looks = paired_looks(trial, incumbent, [["2", "3"], ["1"], ["4"]])
    expected = [[0.0, -0.5], [-0.5, -1.0], [-0.5, -0.25]]  # seed 0 at 5 and 10; the means of both seeds at 5
    assert len(looks) == 3
    for look, values in zip(looks, expected, strict=True):
        np.testing.assert_allclose(look, values)


def test_values_outside_the_bounds_are_found():
    assert outside({"1": 0.0, "2": 1.0}, (0.0, 1.0)) is None
    assert outside({"1": 0.0, "2": 1.5}, (0.0, 1.0)) == ("2", 1.5)
    assert outside({"1": math.nan}, (0.0, 1.0)) is not None
