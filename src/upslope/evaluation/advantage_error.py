"""How far estimated advantages are from the true ones, where those are themselves known only from branches.

The true advantage A(s, a) = Q(s, a) - V(s) of a decision is estimated by k new ends of its row after the action and k
after the state alone: their mean returns differ by A_hat, which is unbiased, and whose variance is itself estimated
without bias. An estimate X of the same advantage, made without these branches, is independent of A_hat given (s, a), so

    E[(X - A_hat)^2 - var_hat] = E[(X - A)^2],   E[A_hat^2 - var_hat] = E[A^2]   and   E[X A_hat] = E[X A].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.clustered import cluster_sums, clustered_mean
from upslope.evaluation.intervals import Interval

_RESAMPLES = 1_000
_SURE = 2.0  # standard errors of A_hat beyond which its sign counts as known


@dataclass(frozen=True, slots=True)
class Truth:
    """True advantages of n decisions as branches tell them.

    advantages A_hat [n], unbiased; noise [n], the unbiased variance of each, 0 where it is exact; halves [2, n], A_hat
    from either half of the branches, which are independent; clusters [n] name what hangs together, such as a prompt.
    """

    advantages: np.ndarray
    noise: np.ndarray
    halves: np.ndarray
    clusters: np.ndarray

    @staticmethod
    def of_branches(after: np.ndarray, before: np.ndarray, clusters: np.ndarray) -> Truth:
        """From returns [n, k] of ends after the action and [n, k] of ends after the state; k even, 4 at least."""
        count = after.shape[1]
        noise = (after.var(1, ddof=1) + before.var(1, ddof=1)) / count
        halves = [after[:, rows].mean(1) - before[:, rows].mean(1) for rows in (slice(0, None, 2), slice(1, None, 2))]
        return Truth(after.mean(1) - before.mean(1), noise, np.stack(halves), clusters)

    @staticmethod
    def exact(advantages: np.ndarray, clusters: np.ndarray) -> Truth:
        """Advantages that are known, by enumeration."""
        return Truth(advantages, np.zeros_like(advantages), np.stack([advantages, advantages]), clusters)

    @property
    def spread(self) -> float:
        """E[A^2] without bias: what saying 0 of every decision gets wrong."""
        return float((self.advantages**2 - self.noise).mean())

    @property
    def sure(self) -> np.ndarray:
        """Whether each decision's sign is known [n]: A_hat is two standard errors from 0, or exact and not 0."""
        found: np.ndarray = (np.abs(self.advantages) >= _SURE * np.sqrt(self.noise)) & (self.advantages != 0)
        return found


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one estimator. error: E[(X - A)^2] / E[A^2], so 0 is perfect and 1 no better than to say 0 of everything.

    more_error: error less that of the estimator that all are compared with, on the same decisions. alignment:
    E[X A] / sqrt(E[X^2] E[A^2]), the cosine of X with the truth: noise that is averaged away lowers it, scale does not.
    slope: E[X A] / E[A^2], 1 of whatever leaves the policy gradient unbiased, an offset b(s) included, and less of what
    shrinks it. rank: Spearman's correlation with A_hat; rank_corrected: divided by the highest that a perfect estimator
    could reach on such branches. Correlations are cut at -1 and 1. sign: the share of decisions of known sign on which
    X has it, 0 counting a half. None where it cannot be said: no spread that is told from 0, no order, no sure sign.
    """

    error: Interval | None
    more_error: Interval | None
    alignment: Interval | None
    slope: Interval | None
    rank: Interval | None
    rank_corrected: Interval | None
    sign: Interval | None


def squared_error(estimates: np.ndarray, truth: Truth) -> np.ndarray:
    """(X - A_hat)^2 - var_hat, [..., n]: its mean is E[(X - A)^2]; a single one may be negative."""
    errors: np.ndarray = (estimates - truth.advantages) ** 2 - truth.noise
    return errors


def spread_is_known(truth: Truth, *, confidence: float = 0.95) -> bool:
    """Whether E[A^2] is told from 0: else it may be anything that errors are divided by.

    Source: Fieller 1954, "Some problems in interval estimation": the interval of a ratio is bounded just then.
    """
    low, _ = clustered_mean(truth.advantages**2 - truth.noise, truth.clusters).bounds(confidence)
    return bool(low > 0)


def effective_clusters(truth: Truth) -> float:
    """How many equal clusters would share E[A^2] as unevenly: where a few hold most of it, intervals are rough.

    (sum q)^2 / sum q^2 over clusters, with q the sum of A_hat^2 - var_hat, 0 where that is negative; 0 where all are.
    Source: Kish 1965, "Survey Sampling", section 11.7.
    """
    sums, _ = cluster_sums(truth.advantages**2 - truth.noise, truth.clusters)
    held = np.maximum(sums, 0.0)
    return float(held.sum() ** 2 / (held**2).sum()) if held.any() else 0.0


def reliability(truth: Truth) -> float:
    """The rank correlation of A_hat with a second A_hat of equally many branches, from that of its halves.

    Its root is what a perfect estimator's rank correlation with A_hat is at most: exact for linear correlations, near
    for ranks. NaN where a half does not vary.
    Source: Spearman 1904 (attenuation); Spearman 1910, Brown 1910 (halves).
    """
    return float(_whole(rank_correlations(truth.halves[:1], truth.halves[1])).item())


def rank_correlations(rows: np.ndarray, other: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Spearman's correlation [e] of rows [e, n] with other [n], ties at their mean rank; NaN where one is constant.

    weights [R, n] say how often each value counts, once where not given: then [R, e].
    """
    times = np.ones((1, len(other))) if weights is None else weights
    total = times.sum(1)

    def centred(values: np.ndarray) -> np.ndarray:
        ranks = _ranks(values, times)
        ranks -= ((ranks * times).sum(1) / total)[:, None]
        return ranks

    second = centred(other)
    correlations = np.empty((len(times), len(rows)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for index, row in enumerate(rows):
            first = centred(row)
            squares = (first**2 * times).sum(1) * (second**2 * times).sum(1)
            correlations[:, index] = (first * second * times).sum(1) / np.sqrt(squares)
    return correlations[0] if weights is None else correlations


def agreements(
    estimates: np.ndarray,
    truth: Truth,
    *,
    reference: int,
    confidence: float = 0.95,
    num_resamples: int = _RESAMPLES,
    seed: int = 0,
) -> list[Agreement]:
    """Of estimators X [e, n] with the truth [n], with percentile intervals over resamples of whole clusters; all are
    compared with the estimator X[reference].

    All estimators share their resamples. Everything is computed anew on each: ratios, ranks and the correction.
    Raises: DataError with fewer than two clusters, or where an estimate is not finite.
    Source: Davison & Hinkley 1997, section 3.8.
    """
    names, index = np.unique(truth.clusters, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"an interval needs two prompts at least, and there are {len(names)}")
    if not np.isfinite(estimates).all():
        raise DataError("an estimated advantage is not a finite number, so nothing can be said of its error")
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_resamples)
    weights = np.concatenate([np.ones((1, len(index))), drawn[:, index]])
    figures = _figures(estimates, truth, reference, weights)
    if not spread_is_known(truth, confidence=confidence):
        figures[:4, 0] = np.nan  # all that is divided by it
    return [_agreement(figures[:, 0, e], figures[:, 1:, e], confidence) for e in range(len(estimates))]


def _figures(estimates: np.ndarray, truth: Truth, reference: int, weights: np.ndarray) -> np.ndarray:
    """The fields of Agreement for every estimator and every row of weights, [7, R, e]; NaN where there is none, and an
    infinite error beside advantages without spread."""
    total = weights.sum(1, keepdims=True)

    def mean(rows: np.ndarray) -> np.ndarray:
        means: np.ndarray = weights @ np.atleast_2d(rows).T / total
        return means

    spread = mean(truth.advantages**2 - truth.noise)
    known = np.where(spread > 0, spread, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(spread > 0, mean(squared_error(estimates, truth)) / known, np.inf)
        along = mean(estimates * truth.advantages) / known
        alignment = along * np.sqrt(known / mean(estimates**2))
        rank = rank_correlations(estimates, truth.advantages, weights)
        ceiling = _whole(rank_correlations(truth.halves[:1], truth.halves[1], weights))
        corrected = rank / np.sqrt(np.where(ceiling > 0, ceiling, np.nan))
        agree = 0.5 + 0.5 * np.sign(estimates) * np.sign(truth.advantages)
        sign = mean(agree * truth.sure) / mean(truth.sure.astype(float))
        more = error - error[:, reference, None]
    return np.stack([error, more, np.clip(alignment, -1, 1), along, rank, np.clip(corrected, -1, 1), sign])


def _whole(half: np.ndarray) -> np.ndarray:
    """The reliability of the whole from the correlation of its halves, 0 where that is below."""
    positive = np.maximum(half, 0.0)
    reliabilities: np.ndarray = 2.0 * positive / (1.0 + positive)
    return reliabilities


def _agreement(figures: np.ndarray, resampled: np.ndarray, confidence: float) -> Agreement:
    tail = 50.0 * (1.0 - confidence)

    def interval(which: int) -> Interval | None:
        known = resampled[which][~np.isnan(resampled[which])]
        # where many resamples have none of it, what the others say is no interval
        if not np.isfinite(figures[which]) or len(known) < confidence * len(resampled[which]):
            return None
        low = np.percentile(known, tail, method="lower")  # no interpolation: an error may be infinite
        high = np.percentile(known, 100.0 - tail, method="higher")
        return Interval(float(figures[which]), float(low), float(high))

    return Agreement(*(interval(which) for which in range(7)))


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks [R, n] of values [n] that count weights [R, n] times: 1 for the least, ties at the mean of their places."""
    order = np.argsort(values, kind="stable")
    inside = values[order]
    before = np.concatenate([np.zeros((len(weights), 1)), weights[:, order].cumsum(1)], 1)
    first, last = np.searchsorted(inside, values, "left"), np.searchsorted(inside, values, "right")
    ranks: np.ndarray = (before[:, first] + before[:, last] + 1.0) / 2.0
    return ranks
