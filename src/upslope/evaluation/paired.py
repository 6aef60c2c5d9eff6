"""The difference of two models on the same prompts, from rewards alone: interval, verdict, and what it saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.clustered import (
    FEW,
    ClusteredMean,
    cluster_bootstrap,
    cluster_sums,
    clustered_mean,
    mostly_alike,
    num_clusters,
    with_imagined,
)
from upslope.evaluation.control import without_luck
from upslope.evaluation.exact_tests import ExactTest, exact_test
from upslope.evaluation.intervals import Interval
from upslope.evaluation.multiplicity import non_inferiority_p
from upslope.evaluation.planning import samples_unpaired
from upslope.evaluation.sequences import FIRST_LOOK, asymptotic_radius, betting_bounds

Method = Literal["t", "asymptotic", "betting"]
Verdict = Literal["better", "worse", "tied", "undecided"]

LEAST_FOR_CONTROL = 20
"""Clusters from which a control's coefficient is fitted: from fewer, a useless control can make things far worse."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rewards of two models on the same n prompts: a [n, k] and b [n, l], from k and l samples a prompt.

    In the order in which they were answered, by which a betting sequence holds at every look.
    clusters [n] names what each prompt belongs to (a document; by default itself). controls [n, q] have mean 0 whatever
    the prompt (see control.centred), and are averaged over its samples.
    """

    a: np.ndarray
    b: np.ndarray
    clusters: np.ndarray | None = None
    controls: np.ndarray | None = None

    @property
    def differences(self) -> np.ndarray:
        """Mean reward of b less mean reward of a, of every prompt [n]."""
        found: np.ndarray = self.b.mean(1) - self.a.mean(1)
        return found


@dataclass(frozen=True, slots=True)
class Difference:
    """J(b) - J(a) with standard error, interval and verdict.

    interval is what `method` gives; bootstrap (of clusters) stands beside a t interval, unless most differences are
    equal: then se and interval allow for two prompts that were not seen (see clustered.with_imagined), and are infinite
    where nothing is known of the reward's range. test: the exact test, where few clusters differ. non_inferiority:
    p-value against "b is worse by the margin", of a t interval. num_samples counts both models' samples,
    num_samples_unpaired what plain averaging over independent prompts needs for the same se. sd: of one prompt's
    difference, clusters allowed for. control_share: variance that the control left. notes name every fallback and why.
    """

    estimate: float
    se: float
    df: float
    interval: Interval
    method: Method
    verdict: Verdict
    margin: float | None
    bootstrap: Interval | None
    test: ExactTest | None
    non_inferiority: float | None
    num_prompts: int
    num_clusters: int
    num_samples: int
    num_samples_unpaired: float
    sd: float
    control_share: float | None
    notes: tuple[str, ...]


def difference(
    pairs: Pairs,
    *,
    method: Method = "t",
    confidence: float = 0.95,
    margin: float | None = None,
    bounds: tuple[float, float] | None = None,
    tuned_for: float | None = None,
    seed: int = 0,
) -> Difference:
    """J(b) - J(a) over prompts, each counted alike, with an interval that is robust to clusters.

    method: "t" for a number of prompts fixed beforehand; "asymptotic" or "betting" where one looks again and again and
    stops when satisfied. Betting needs the rewards' `bounds`, and holds for any number of prompts. Verdict of b: better
    or worse where the interval leaves out 0 (and, of few pairs, the exact test agrees); tied where it holds 0 and lies
    within +- margin; else undecided. tuned_for: clusters at which an asymptotic sequence is narrowest.
    Raises: DataError with one prompt, rewards that are not finite or out of bounds, or a method without what it needs.
    """
    _check(pairs, method, bounds, margin)
    values, share, notes = _adjusted(pairs)
    mean, alike, note = _mean(pairs, values, bounds)
    estimate, se = float(values.mean()), float(mean.se)
    test = bootstrap = worse = None
    if method == "t":
        test = _exact_test(pairs, seed)
        if not alike:  # else many resamples would hold none of the few that differ
            resampled = cluster_bootstrap(values, pairs.clusters, confidence=confidence, seed=seed)
            bootstrap = Interval(estimate, *resampled)
        if margin is not None:
            worse = non_inferiority_p(float(mean.estimate), se, mean.df, margin=margin)
    if test is not None:
        note = (*note, f"fewer than {FEW} prompts differ, so a verdict also needs the exact {test.name} test")
    interval = Interval(estimate, *_interval(pairs, values, mean, method, confidence, bounds, tuned_for))
    return Difference(
        estimate=estimate,
        se=se,
        df=mean.df,
        interval=interval,
        method=method,
        verdict=_verdict(interval, margin, test, confidence),
        margin=margin,
        bootstrap=bootstrap,
        test=test,
        non_inferiority=worse,
        num_prompts=len(values),
        num_clusters=num_clusters(pairs.clusters, len(values)),
        num_samples=pairs.a.size + pairs.b.size,
        num_samples_unpaired=samples_unpaired(_variance(pairs.a), _variance(pairs.b), se),
        sd=se * math.sqrt(len(values)),
        control_share=share,
        notes=(*notes, *note),
    )


def _adjusted(pairs: Pairs) -> tuple[np.ndarray, float | None, tuple[str, ...]]:
    """The differences without what the controls explain, the share of their variance that is left, and a note."""
    values = pairs.differences
    if pairs.controls is None:
        return values, None, ()
    if num_clusters(pairs.clusters, len(values)) < LEAST_FOR_CONTROL:
        return values, None, (f"the control was left out: its coefficient takes {LEAST_FOR_CONTROL} prompts",)
    adjusted = without_luck(values, pairs.controls, pairs.clusters)
    before = float(np.var(values))
    return adjusted, float(np.var(adjusted)) / before if before else None, ()


def _mean(
    pairs: Pairs, values: np.ndarray, bounds: tuple[float, float] | None
) -> tuple[ClusteredMean, bool, tuple[str, ...]]:
    """The mean of the differences, whether these are mostly alike, and what was done about it."""
    if not mostly_alike(pairs.differences, pairs.clusters):
        return clustered_mean(values, pairs.clusters), False, ()
    low, high = bounds or (min(pairs.a.min(), pairs.b.min()), max(pairs.a.max(), pairs.b.max()))
    if high == low:
        note = "the reward is constant: it cannot tell the models apart; give bounds=... to bound it"
        unknown = ClusteredMean(values.mean(), np.array(math.inf), 1.0, num_clusters(pairs.clusters, len(values)))
        return unknown, True, (note,)
    mean = clustered_mean(*with_imagined(values, pairs.clusters, low=low - high, high=high - low))
    return mean, True, ("most prompts show the same difference: the interval allows for two that were not seen",)


def _exact_test(pairs: Pairs, seed: int) -> ExactTest | None:
    """Of the differences as they were scored, where few clusters have any."""
    sums, _ = cluster_sums(pairs.differences, pairs.clusters)
    return exact_test(sums, seed=seed) if np.count_nonzero(sums) < FEW else None


def _interval(
    pairs: Pairs,
    values: np.ndarray,
    mean: ClusteredMean,
    method: Method,
    confidence: float,
    bounds: tuple[float, float] | None,
    tuned_for: float | None,
) -> tuple[float, float]:
    if method == "betting":
        assert bounds is not None
        sums, sizes = cluster_sums(values, pairs.clusters)
        width = bounds[1] - bounds[0]
        low, high = betting_bounds((sums / sizes / width + 1.0) / 2.0, confidence=confidence)
        return (2.0 * float(low) - 1.0) * width, (2.0 * float(high) - 1.0) * width
    if method == "t":
        low, high = mean.bounds(confidence)
        return float(low), float(high)
    count = mean.num_clusters
    half = float(asymptotic_radius(count, confidence=confidence, tuned_for=tuned_for or count) * mean.se)
    return float(mean.estimate) - half, float(mean.estimate) + half


def _verdict(interval: Interval, margin: float | None, test: ExactTest | None, confidence: float) -> Verdict:
    if test is None or test.p_value <= 1.0 - confidence:
        if interval.low > 0.0:
            return "better"
        if interval.high < 0.0:
            return "worse"
    if margin is not None and -margin < interval.low and interval.high < margin:
        return "tied"
    return "undecided"


def _variance(rewards: np.ndarray) -> float:
    return float(rewards.var(ddof=1))


def _check(pairs: Pairs, method: Method, bounds: tuple[float, float] | None, margin: float | None) -> None:
    for name, rewards in (("a", pairs.a), ("b", pairs.b)):
        if not np.isfinite(rewards).all():
            raise DataError(f"a reward of {name} is not a finite number; leave out the prompt for both models")
        if bounds and not (bounds[0] <= rewards.min() and rewards.max() <= bounds[1]):
            raise DataError(f"a reward of {name} lies outside the bounds {bounds[0]:g} to {bounds[1]:g}")
    if len(pairs.a) != len(pairs.b):
        raise DataError(f"the models answered {len(pairs.a)} and {len(pairs.b)} prompts; a pair needs both answers")
    if margin is not None and not margin > 0.0:
        raise DataError(f"the margin is {margin}; it must be above 0")
    clusters = num_clusters(pairs.clusters, len(pairs.a))
    if clusters < 2:
        raise DataError(f"there are {len(pairs.a)} prompts in {clusters} cluster: no interval without two at least")
    if method == "asymptotic" and clusters < FIRST_LOOK:
        raise DataError(
            f"an asymptotic sequence begins at {FIRST_LOOK} prompts (or clusters), and there are {clusters}; "
            'take method="betting" with bounds=(low, high) of the reward'
        )
    if method == "betting":
        _check_betting(pairs, bounds)


def _check_betting(pairs: Pairs, bounds: tuple[float, float] | None) -> None:
    if bounds is None or not bounds[0] < bounds[1]:
        raise DataError('method="betting" needs bounds=(low, high) of the reward')
    if pairs.controls is not None:
        raise DataError('method="betting" needs bounded differences, which a control takes away; leave it out')
    if pairs.clusters is not None and np.ptp(np.unique(pairs.clusters, return_counts=True)[1]) > 0:
        raise DataError('method="betting" needs clusters of one size; take method="asymptotic"')
