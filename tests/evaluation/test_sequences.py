"""Confidence sequences against the martingales that they are made of, and simulated: covered at all times at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from upslope.evaluation.sequences import FIRST_LOOK, asymptotic_radius, betting_bounds, betting_log_capital

REPETITIONS, LENGTH = 2_000, 600


def test_the_radius_is_where_the_normal_mixture_reaches_one_over_alpha():
    """The mixture over l of exp(l S - t l^2 / 2), l ~ N(0, r^2), integrated numerically; S = radius sqrt(t)."""
    r2 = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 500
    bets = np.linspace(-12, 12, 200_001) * math.sqrt(r2)
    density = np.exp(-(bets**2) / (2 * r2)) / math.sqrt(2 * math.pi * r2)
    for t in (40, 500, 3_000):
        total = float(asymptotic_radius(t, confidence=0.95, tuned_for=500)) * math.sqrt(t)
        mixture = (np.exp(bets * total - t * bets**2 / 2) * density).sum() * (bets[1] - bets[0])
        assert mixture == pytest.approx(1 / 0.05, rel=1e-6)


def test_the_radius_is_smallest_where_it_was_tuned_for():
    """Against other tunings at that time; the published approximation is within 1% of the best."""
    tunings = np.geomspace(20, 20_000, 200)
    radii = [float(asymptotic_radius(400, confidence=0.95, tuned_for=tuning)) for tuning in tunings]
    assert float(asymptotic_radius(400, confidence=0.95, tuned_for=400)) <= 1.01 * min(radii)


def running(values):
    """Means and standard errors [R, n] after every value."""
    times = np.arange(1, values.shape[-1] + 1)
    means = values.cumsum(-1) / times
    squares = (values**2).cumsum(-1) - times * means**2
    return means, np.sqrt(np.maximum(squares, 0) / np.maximum(times - 1, 1) / times)


def test_the_asymptotic_sequence_covers_at_all_times_at_once():
    """Differences of a metric of 0 and 1, mean .1, looked at after every prompt; the fixed interval fails."""
    generator = np.random.default_rng(0)
    values = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=(REPETITIONS, LENGTH))
    means, se = running(values)
    times = np.arange(1, LENGTH + 1)
    off = np.abs(means - 0.1)[:, FIRST_LOOK - 1 :]
    radius = asymptotic_radius(times, confidence=0.95, tuned_for=LENGTH)
    covered = (off <= (radius * se)[:, FIRST_LOOK - 1 :]).all(1).mean()
    fixed = (off <= (1.96 * se)[:, FIRST_LOOK - 1 :]).all(1).mean()
    assert covered >= 0.94
    assert fixed < 0.8


def test_betting_covers_at_all_times_at_once():
    generator = np.random.default_rng(1)
    values = generator.choice([0.0, 0.5, 1.0], p=[0.02, 0.9, 0.08], size=(REPETITIONS, LENGTH))
    capital = betting_log_capital(values, 0.53, confidence=0.95)
    assert (capital < math.log(1 / 0.05)).all(1).mean() >= 0.94


def test_the_bounds_are_where_a_gambler_becomes_rich():
    """Bisection against a grid of means, and the capital against the products written out."""
    values = np.random.default_rng(2).beta(2, 5, size=(3, 80))
    low, high = betting_bounds(values, confidence=0.9)
    grid = np.linspace(0, 1, 2_001)
    for row in range(3):
        logs = betting_log_capital(values[row][None].repeat(len(grid), 0), grid, confidence=0.9)
        kept = grid[(logs < math.log(1 / 0.1)).all(1)]
        assert low[row] == pytest.approx(kept.min(), abs=6e-4)
        assert high[row] == pytest.approx(kept.max(), abs=6e-4)
    seen, capitals = [], [1.0, 1.0]
    for t, x in enumerate(values[0], 1):
        means = [(0.5 + sum(seen[: i + 1])) / (i + 2) for i in range(len(seen))]
        variance = (0.25 + sum((s - m) ** 2 for s, m in zip(seen, means, strict=True))) / t
        bet = math.sqrt(2 * math.log(2 / 0.1) / (variance * t * math.log(1 + t)))
        capitals[0] *= 1 + min(bet, 0.5 / 0.2) * (x - 0.2)
        capitals[1] *= 1 - min(bet, 0.5 / 0.8) * (x - 0.2)
        seen.append(x)
    expected = math.log(max(capitals) / 2)
    assert betting_log_capital(values[0], 0.2, confidence=0.9)[-1] == pytest.approx(expected, rel=1e-9)


def test_betting_gains_from_small_variance():
    """Bounds alone (Hoeffding) would need 1.36 / sqrt(n); paired differences that are mostly 0 are far narrower."""
    values = np.random.default_rng(3).choice([0.0, 0.5, 1.0], p=[0.02, 0.95, 0.03], size=2_000)
    low, high = betting_bounds(values, confidence=0.95)
    assert low < 0.505 < high
    assert (high - low) / 2 < 0.5 * math.sqrt(math.log(2 / 0.05) / (2 * 2_000))


def test_values_that_are_all_equal_leave_a_width():
    low, high = betting_bounds(np.full(100, 0.5), confidence=0.95)
    assert low < 0.5 < high
    assert high - low < 0.2
