"""Interquartile means against SciPy's trimmed ones, and the stratified bootstrap against every resample there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.held_out import HeldOut
from upslope.evaluation.intervals import Interval
from upslope.evaluation.learning_curves import interquartile_mean, learning_curve, stratified_bootstrap


@pytest.mark.parametrize("count", [1, 3, 4, 7, 20])
def test_the_interquartile_mean_is_scipys_trimmed_mean(count):
    scores = np.random.default_rng(count).normal(size=(count, 5))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=0))


def test_the_bootstrap_resamples_runs_within_their_task():
    """Two tasks of 2 and 3 runs: all 4 x 27 resamples are equally likely; 20,000 drawn ones have their quantiles."""
    tasks = [np.array([0.1, 0.5]), np.array([0.2, 0.7, 0.8])]
    exact = sorted(
        stats.trim_mean([*one, *other], 0.25)
        for one in product(tasks[0], repeat=2)
        for other in product(tasks[1], repeat=3)
    )
    estimate, low, high = stratified_bootstrap(tasks, confidence=0.8, num_resamples=20_000)
    assert estimate == pytest.approx(stats.trim_mean([0.1, 0.5, 0.2, 0.7, 0.8], 0.25))
    assert low == pytest.approx(np.quantile(exact, 0.1, method="inverted_cdf"), abs=0.02)
    assert high == pytest.approx(np.quantile(exact, 0.9, method="inverted_cdf"), abs=0.02)


def test_a_run_keeps_its_whole_curve():
    """Two runs that mirror each other: of every resample the curve is one of theirs, or flat."""
    mirrored = np.array([[0.0, 1.0], [1.0, 0.0]])
    _, low, high = stratified_bootstrap([mirrored], confidence=0.4)
    assert low.tolist() == high.tolist() == [0.5, 0.5]


def test_the_interval_covers_the_middle_of_many_runs():
    """300 repetitions of 20 runs from a normal distribution, whose interquartile mean is its mean."""
    generator, covered = np.random.default_rng(0), 0
    for repetition in range(300):
        _, low, high = stratified_bootstrap([generator.normal(size=20)], num_resamples=400, seed=repetition)
        covered += low <= 0.0 <= high
    assert 0.9 <= covered / 300 <= 0.98


def curve(values):
    return [HeldOut(step, 10, Interval(value, 0.0, 1.0)) for step, value in values.items()]


def test_curves_of_runs_meet_at_their_common_steps():
    runs = [curve({0: 0.2, 10: 0.5, 20: 0.9}), curve({0: 0.4, 20: 0.7}), curve({0: 0.3, 10: 0.1, 20: 0.8, 30: 1.0})]
    found = learning_curve([runs])
    assert [point.step for point in found] == [0, 20]
    assert [point.interval.estimate for point in found] == pytest.approx([0.3, 0.8])
    assert all(
        point.num_runs == 3 and point.interval.low <= point.interval.estimate <= point.interval.high for point in found
    )
    with pytest.raises(DataError, match="2 runs have no evaluated step in common"):
        learning_curve([[curve({0: 0.1}), curve({5: 0.1})]])
    with pytest.raises(DataError, match="needs a run of every task"):
        stratified_bootstrap([np.array([1.0]), np.array([])])
