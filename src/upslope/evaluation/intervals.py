"""Intervals for means and paired gains, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upslope.errors import DataError

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_interval(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean of independent values with a percentile-bootstrap interval over 10,000 resamples.

    Widened on either side to Wilson's bound for values in [0, 1], so that all-equal values do not give a width of 0.
    Raises: DataError without values.
    Source: Efron & Tibshirani 1993, ch. 13; Wilson 1927.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise DataError("there are no values to take an interval of")
    low, high = _percentiles(sample, confidence, seed)
    if sample.min() >= 0.0 and sample.max() <= 1.0:
        wilson = _wilson(float(sample.mean()), sample.size, confidence)
        low, high = min(low, wilson[0]), max(high, wilson[1])
    return Interval(float(sample.mean()), low, high)


def paired_gain(
    before: Sequence[float], after: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of after - before on the same prompts with a percentile-bootstrap interval over the prompts.

    Raises: DataError when the two are not paired, or are empty.
    Source: Efron & Tibshirani 1993, ch. 13.
    """
    if len(before) != len(after):
        raise DataError(f"a paired gain needs the same prompts twice, not {len(before)} and {len(after)} values")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if not difference.size:
        raise DataError("there are no pairs to take a gain of")
    return Interval(float(difference.mean()), *_percentiles(difference, confidence, seed))


def _percentiles(sample: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = np.array([sample[generator.integers(sample.size, size=sample.size)].mean() for _ in range(_RESAMPLES)])
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return float(low), float(high)


def _wilson(mean: float, count: int, confidence: float) -> tuple[float, float]:
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * ((mean * (1 - mean) + z * z / (4 * count)) / count) ** 0.5
    return centre - half, centre + half
