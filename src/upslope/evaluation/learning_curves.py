"""Learning curves over runs that differ by seed (and task): interquartile means with stratified bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.held_out import HeldOut
from upslope.evaluation.intervals import Interval


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The interquartile mean over num_runs runs after one step, with its interval over runs."""

    step: int
    num_runs: int
    interval: Interval


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of scores [n, ...] over their first axis: floor(n / 4) are dropped at either end.

    Less moved by one run that failed than the mean, less noisy than the median; of three scores it is the mean.
    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3.
    """
    cut = len(scores) // 4
    middle: np.ndarray = np.sort(scores, axis=0)[cut : len(scores) - cut].mean(0)
    return middle


def stratified_bootstrap(
    scores: Sequence[np.ndarray], *, confidence: float = 0.95, num_resamples: int = 2_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(estimate, low, high) [...] of the interquartile mean of all scores together, by resampling runs within tasks.

    scores: one array [n_k, ...] a task, its runs first; the bounds are percentiles over resamples in which each task
    keeps its number of runs, and a run its whole curve. With few runs they are too narrow: 3 runs know little.
    Raises: DataError without a run of some task, or with scores that are not finite.
    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.2 and appendix A.5.
    """
    if not scores or not all(len(task) for task in scores) or not all(np.isfinite(task).all() for task in scores):
        raise DataError("an interval over runs needs a run of every task, and scores that are finite numbers")
    generator = np.random.default_rng(seed)
    drawn = np.stack(
        [
            interquartile_mean(np.concatenate([task[generator.integers(len(task), size=len(task))] for task in scores]))
            for _ in range(num_resamples)
        ]
    )
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(drawn, [tail, 100.0 - tail], axis=0)
    return interquartile_mean(np.concatenate(scores)), low, high


def learning_curve(tasks: Sequence[Sequence[Sequence[HeldOut]]], *, confidence: float = 0.95) -> list[Aggregate]:
    """The interquartile mean of held-out metrics at every step that all runs evaluated, with pointwise intervals.

    tasks: of each task its runs, of each run its curve (see held_out.curve). Metrics of several tasks have to mean the
    same, shares of 1 say.
    Raises: DataError without a run, or without a step that all evaluated.
    """
    curves = [[{one.step: one.interval.estimate for one in run} for run in runs] for runs in tasks]
    every = [run for runs in curves for run in runs]
    steps = sorted(set.intersection(*map(set, every))) if every else []
    if not steps:
        raise DataError(f"{len(every)} runs have no evaluated step in common, so there is no curve over them")
    scores = [np.array([[run[step] for step in steps] for run in runs]) for runs in curves]
    found = zip(steps, *stratified_bootstrap(scores, confidence=confidence), strict=True)
    return [Aggregate(step, len(every), Interval(*map(float, numbers))) for step, *numbers in found]
