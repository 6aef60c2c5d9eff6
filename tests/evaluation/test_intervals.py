"""Intervals against closed forms, known coverage and exact resampling distributions."""

import math

import numpy as np
import pytest

from upslope.errors import DataError
from upslope.evaluation.intervals import Interval, mean_interval, paired_gain


def test_mean_interval_is_the_normal_one_for_many_values():
    """For 400 values the percentile bootstrap is mean +- 1.96 std / sqrt(n), to a few per cent of its width."""
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = mean_interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_confidence_sets_the_width():
    values = np.random.default_rng(1).normal(size=200).tolist()
    narrow, wide = mean_interval(values, confidence=0.5), mean_interval(values, confidence=0.99)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.576 / 0.674, rel=0.1)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (0, 4, 0.0, 0.4899), (1, 1, 0.2065, 1.0)],
)
def test_all_equal_fractions_get_wilsons_bounds(successes, count, low, high):
    """Wilson's bounds by hand, z = 1.96: 0 of n gives z^2 / (n + z^2)."""
    interval = mean_interval([1.0] * successes + [0.0] * (count - successes))
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


def test_values_outside_the_unit_interval_get_no_wilson_bounds():
    assert mean_interval([2.0] * 10) == Interval(2.0, 2.0, 2.0)


def test_interval_covers_the_mean_as_often_as_it_says():
    """Over 30 data sets of 40 coin flips at 0.3, the 80% interval holds 0.3 in 60% to 97% of them."""
    generator = np.random.default_rng(2)
    found = [mean_interval((generator.random(40) < 0.3).astype(float).tolist(), confidence=0.8) for _ in range(30)]
    assert 0.6 <= np.mean([interval.low <= 0.3 <= interval.high for interval in found]) <= 0.97


def test_paired_gain_resamples_pairs():
    """With a constant gain on every prompt the interval has no width, however much the prompts differ."""
    before = np.linspace(0.0, 10.0, 50)
    gain = paired_gain(before.tolist(), (before + 0.25).tolist())
    assert (gain.estimate, gain.low, gain.high) == pytest.approx((0.25, 0.25, 0.25))
    changed = (before + np.where(np.arange(50) % 2, 1.0, -0.5)).tolist()
    gain = paired_gain(before.tolist(), changed)
    half = 1.96 * 0.75 / math.sqrt(50)
    assert (gain.low, gain.high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.1 * half)


def test_two_points_resample_to_the_exact_distribution():
    """Means of two draws from {0, 4} are 0, 2, 4 with 1/4, 1/2, 1/4: the middle half is [0 or 2, 2 or 4]."""
    assert paired_gain([0.0, 0.0], [0.0, 4.0], confidence=0.4) == Interval(2.0, 2.0, 2.0)
    assert paired_gain([0.0, 0.0], [0.0, 4.0], confidence=0.6) == Interval(2.0, 0.0, 4.0)


def test_the_same_seed_gives_the_same_interval():
    """CHECKS 39."""
    values = np.random.default_rng(3).normal(size=30).tolist()
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4) != mean_interval(values, seed=5)


def test_nothing_to_measure_is_refused():
    with pytest.raises(DataError, match="no values"):
        mean_interval([])
    with pytest.raises(DataError, match="no pairs"):
        paired_gain([], [])
    with pytest.raises(DataError, match="the same prompts twice, not 2 and 3 values"):
        paired_gain([0, 1], [0, 1, 2])


def test_an_interval_reads_as_text():
    assert str(Interval(0.5, 0.4, 0.61)) == "0.50 [0.40, 0.61]"
