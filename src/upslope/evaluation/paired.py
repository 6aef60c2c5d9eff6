"""The difference of two models on the same prompts, from rewards alone: interval, verdict, and what it saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.clustered import ClusteredMean, cluster_bootstrap, cluster_sums, clustered_mean
from upslope.evaluation.control import without_luck
from upslope.evaluation.exact_tests import ExactTest, exact_test, unanimous_p, unanimous_radius
from upslope.evaluation.intervals import Interval
from upslope.evaluation.multiplicity import non_inferiority_p
from upslope.evaluation.planning import samples_unpaired
from upslope.evaluation.sequences import FIRST_LOOK, asymptotic_radius, betting_bounds

Method = Literal["t", "asymptotic", "betting"]
Verdict = Literal["better", "worse", "tied", "undecided"]

FEW = 100
"""Below so many clusters with a difference a verdict also needs an exact test."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rewards of two models on the same n prompts: a [n, k] and b [n, l], from k and l samples a prompt.

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

    interval is what `method` gives; bootstrap (of clusters) stands beside a t interval, unless all differences are
    equal. test: the exact test, where few clusters differ. non_inferiority: p-value against "b is worse by the margin",
    of a t interval. num_samples counts both models' samples, num_samples_unpaired what plain averaging over independent
    prompts needs for the same se (None where that is 0). sd: of one prompt's difference, clusters allowed for.
    control_share: variance that the control left. notes name every fallback and why.
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
    num_samples_unpaired: float | None
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
    values, share = _adjusted(pairs)
    mean = clustered_mean(values, pairs.clusters)
    unanimous = bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))
    spread = _spread(pairs, bounds)
    notes = []
    if unanimous and method != "betting":
        interval, note = _unanimous(mean, spread, confidence)
        notes.append(note)
    else:
        interval = _interval(pairs, values, mean, method, confidence, bounds, tuned_for)
    test = bootstrap = worse = None
    if method == "t":
        if not unanimous:  # which any resample would be as well
            resampled = cluster_bootstrap(values, pairs.clusters, confidence=confidence, seed=seed)
            bootstrap = Interval(float(mean.estimate), *resampled)
        test = _exact_test(pairs, seed)
        worse = None if margin is None else _worse(mean, margin, spread, unanimous)
    if test is not None:
        notes.append(f"fewer than {FEW} prompts differ, so a verdict also needs the exact {test.name} test")
    se = 0.0 if unanimous else float(mean.se)
    return Difference(
        estimate=float(mean.estimate),
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
        num_clusters=mean.num_clusters,
        num_samples=pairs.a.size + pairs.b.size,
        num_samples_unpaired=samples_unpaired(_variance(pairs.a), _variance(pairs.b), se) if se else None,
        sd=se * math.sqrt(len(values)),
        control_share=share,
        notes=tuple(notes),
    )


def _adjusted(pairs: Pairs) -> tuple[np.ndarray, float | None]:
    """The differences without what the controls explain, and the share of their variance that is left."""
    values = pairs.differences
    if pairs.controls is None:
        return values, None
    adjusted = without_luck(values, pairs.controls, pairs.clusters)
    before = float(np.var(values))
    return adjusted, float(np.var(adjusted)) / before if before else None


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
) -> Interval:
    estimate = float(mean.estimate)
    if method == "t":
        low, high = mean.bounds(confidence)
        return Interval(estimate, float(low), float(high))
    if method == "asymptotic":
        radius = asymptotic_radius(mean.num_clusters, confidence=confidence, tuned_for=tuned_for or mean.num_clusters)
        half = float(radius * mean.se)
        return Interval(estimate, estimate - half, estimate + half)
    assert bounds is not None
    sums, sizes = cluster_sums(values, pairs.clusters)
    width = bounds[1] - bounds[0]
    low, high = betting_bounds((sums / sizes / width + 1.0) / 2.0, confidence=confidence)
    return Interval(estimate, (2.0 * float(low) - 1.0) * width, (2.0 * float(high) - 1.0) * width)


def _verdict(interval: Interval, margin: float | None, test: ExactTest | None, confidence: float) -> Verdict:
    if test is None or test.p_value <= 1.0 - confidence:
        if interval.low > 0.0:
            return "better"
        if interval.high < 0.0:
            return "worse"
    if margin is not None and -margin < interval.low and interval.high < margin:
        return "tied"
    return "undecided"


def _unanimous(mean: ClusteredMean, spread: float, confidence: float) -> tuple[Interval, str]:
    """The interval where every prompt shows the same difference, and the note that says so."""
    estimate = float(mean.estimate)
    if not spread:
        everywhere = Interval(estimate, -math.inf, math.inf)
        return everywhere, "the reward is constant: it cannot tell the models apart; give bounds=... to bound it"
    half = unanimous_radius(mean.num_clusters, spread=spread, confidence=confidence)
    note = "every prompt shows the same difference: the interval is by the share of prompts that may yet be unlike"
    return Interval(estimate, estimate - half, estimate + half), note


def _worse(mean: ClusteredMean, margin: float, spread: float, unanimous: bool) -> float:
    if unanimous:
        return unanimous_p(mean.num_clusters, spread=spread, shift=float(mean.estimate) + margin)
    return non_inferiority_p(float(mean.estimate), float(mean.se), mean.df, margin=margin)


def _spread(pairs: Pairs, bounds: tuple[float, float] | None) -> float:
    """How far a prompt's difference may lie from the one found: by the bounds, else by the rewards that were seen."""
    low, high = bounds or (min(pairs.a.min(), pairs.b.min()), max(pairs.a.max(), pairs.b.max()))
    return float(high - low + abs(pairs.differences.mean())) if high > low else 0.0


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
    clusters = len(pairs.a) if pairs.clusters is None else len(np.unique(pairs.clusters))
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
