"""Where a run drifts over many steps: trends and growth of its metrics, in units that need no tuning.

Quantities of `alarms.Rule`: of the latest steps' metrics, newest last; None where they are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

Metrics = Mapping[str, Any]

ENDS = 10  # steps at either end whose mean stands for where a window began and ended
WINDOWS = (20, 40, 80, 160, 320)  # steps; a fast fall shows in a short one, a slow one in a long one
_RISES = 4.0  # standard errors of a trend that counts as a rise
_FEW_ACTIONS = 8.0  # growth is measured from this length on: from two tokens to four is none


def trend(values: Sequence[float]) -> float:
    """t = slope / its standard error, of the values' least-squares line over their places; 0 for a constant.

    Under independent noise of n values without a trend it has Student's t distribution with n - 2 degrees of freedom.
    """
    y = np.asarray(values, dtype=np.float64)
    rounding = 1e-12 * float(np.abs(y).max()) / len(y)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    y = y - y.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    noise = math.sqrt(float(np.square(y - slope * x).sum()) / (len(y) - 2) / spread)
    if abs(slope) <= rounding:
        return 0.0
    return slope / noise if noise > rounding else math.copysign(math.inf, slope)


def parting(steps: Sequence[Metrics]) -> float | None:
    """min(t of the reward's rise, t of gold's fall), the largest over WINDOWS of the newest steps that have both."""
    both = [(m["reward"], m["gold"]) for m in steps if "reward" in m and "gold" in m]
    if len(both) < WINDOWS[0]:
        return None
    rewards, golds = np.asarray(both, dtype=np.float64).T
    if not np.isfinite([rewards, golds]).all():
        return None
    whole = [size for size in WINDOWS if size <= len(both)]
    return max(min(trend(rewards[-size:]), -trend(golds[-size:])) for size in whole)


def lengthening(steps: Sequence[Metrics]) -> float | None:
    """By what factor rows grew from the first ENDS steps to the last; 0 where gold rose meanwhile, which earns it."""
    ends = _ends(steps, "length")
    return None if ends is None else 0.0 if _gold_rose(steps) else ends[1] / max(ends[0], _FEW_ACTIONS)


def repeating(steps: Sequence[Metrics]) -> float | None:
    """By how much the repeated share rose from the first ENDS steps to the last; 0 where gold rose meanwhile."""
    ends = _ends(steps, "repetition")
    return None if ends is None else 0.0 if _gold_rose(steps) else ends[1] - ends[0]


def disagreement(steps: Sequence[Metrics]) -> float | None:
    """By what factor the spread of an ensemble of reward models grew from the first ENDS steps to the last."""
    ends = _ends(steps, "reward/reward_model_std")
    return None if ends is None or ends[0] <= 0 else ends[1] / ends[0]


def _ends(steps: Sequence[Metrics], name: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last ENDS steps that have it; None before there are twice as many."""
    known = [float(metrics[name]) for metrics in steps if name in metrics]
    return (fmean(known[:ENDS]), fmean(known[-ENDS:])) if len(known) >= 2 * ENDS else None


def _gold_rose(steps: Sequence[Metrics]) -> bool:
    golds = [metrics["gold"] for metrics in steps if "gold" in metrics]
    return len(golds) >= WINDOWS[0] and trend(golds) >= _RISES
