"""Means of values that hang together within clusters (a prompt, a document): standard errors and intervals.

Values are [..., n]: leading axes are repetitions of an experiment, computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from upslope.errors import DataError
from upslope.evaluation import student_t

FEW = 100
"""Below so many clusters that differ, a normal approximation alone is not trusted."""


@dataclass(frozen=True, slots=True)
class ClusteredMean:
    """Means [...] of values [..., n] with standard errors [...] that are robust to clusters, and their t's df."""

    estimate: np.ndarray
    se: np.ndarray
    df: float
    num_clusters: int

    def bounds(self, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """estimate -+ t se, the two-sided interval."""
        half = student_t.quantile(0.5 + confidence / 2, self.df) * self.se
        return self.estimate - half, self.estimate + half


def clustered_mean(values: np.ndarray, clusters: np.ndarray | None = None) -> ClusteredMean:
    """sum(x) / n, with se^2 = sum over clusters of (sum of residuals)^2 / (1 - n_g / n) / n^2.

    values [..., n], all counted alike; clusters [n] names each one's cluster, by default its own. The standard error
    is unbiased for independent values, whatever the sizes (CR2), and df is Satterthwaite's: one less than there are
    clusters where these are equally large, fewer where a few are much larger.
    Raises: DataError with fewer than two clusters or a value that is not finite.
    Source: Bell & McCaffrey 2002, "Bias reduction in standard errors for linear regression with multi-stage samples";
    Imbens & Kolesar 2016, arXiv:1601.01981, section 3, for a mean.
    """
    values = np.asarray(values, dtype=np.float64)
    _check(values, clusters)
    estimate = values.mean(-1)
    sums, sizes = cluster_sums(values - estimate[..., None], clusters)
    share = sizes / values.shape[-1]
    variance = (sums**2 / (1.0 - share)).sum(-1) / values.shape[-1] ** 2
    weight = share / (1.0 - share)
    trace = (weight**2).sum() - 2.0 * (weight * share * weight).sum() + (share * weight).sum() ** 2
    return ClusteredMean(estimate, np.sqrt(variance), float(1.0 / trace), len(sizes))


def crossed_mean(values: np.ndarray, clusters: np.ndarray | None = None) -> ClusteredMean:
    """Mean of values [S, n] of S seeds on the same n prompts, for other seeds and other prompts than these.

    se^2 = V_seeds + V_prompts: that of the seeds' means, and that of the prompts' means (in clusters [n]). What belongs
    to one seed at one prompt only is counted in both, so se errs on the safe side. One seed says nothing of others: se
    is then that of its prompts. df: Satterthwaite's of the sum. Where seeds differ much more than prompts do, the 95%
    interval of two seeds covers 89% of the time, of three 93%.
    Raises: DataError as `clustered_mean` does.
    Source: Owen 2007, arXiv:0712.0483, section 3, for the naive variances that are added.
    """
    values = np.asarray(values, dtype=np.float64)
    by_prompt, seeds = clustered_mean(values.mean(0), clusters), len(values)
    if seeds == 1:
        return by_prompt
    across, within = float(values.mean(1).var(ddof=1)) / seeds, float(by_prompt.se) ** 2
    spread = across**2 / (seeds - 1) + within**2 / by_prompt.df
    df = (across + within) ** 2 / spread if spread else by_prompt.df
    return ClusteredMean(by_prompt.estimate, np.sqrt(across + within), df, by_prompt.num_clusters)


def cluster_sums(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums [..., G] of values [..., n] over clusters, in the order in which they first appear, and the sizes [G].

    The order matters to betting: an order by names would be another one at every look.
    """
    if clusters is None:
        return values, np.ones(values.shape[-1], dtype=np.int64)
    _, first, places = np.unique(clusters, return_index=True, return_inverse=True)
    places = np.argsort(np.argsort(first))[places]
    order = np.argsort(places, kind="stable")
    _, starts, sizes = np.unique(places[order], return_index=True, return_counts=True)
    return np.add.reduceat(values[..., order], starts, axis=-1), sizes


def num_clusters(clusters: np.ndarray | None, num_values: int) -> int:
    """How many clusters there are: as many as values where none are named."""
    return num_values if clusters is None else len(np.unique(clusters))


def mostly_alike(values: np.ndarray, clusters: np.ndarray | None = None) -> bool:
    """Whether fewer than 100 clusters, and fewer than half, have another mean than the most common one.

    The standard error of such values rests on the few that differ, and is 0 where none does.
    """
    sums, sizes = cluster_sums(values, clusters)
    _, counts = np.unique(np.round(sums / sizes, 12), return_counts=True)
    unlike = len(sizes) - counts.max()
    return bool(unlike < FEW and 2 * unlike < len(sizes))


def with_imagined(
    values: np.ndarray, clusters: np.ndarray | None, *, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """The values [n] and two clusters that nobody saw, of the mean size: one of the lowest value, one of the highest.

    What a t interval needs where values are mostly alike. Of 200 prompts of which 2% differ, all in favour of one
    model, it leaves out the truth in 9% of cases otherwise, and in 2% so; where nothing differs it is 2.8 / n wide on
    either side, near the "rule of three". low and high: the least and the largest that a value can be.
    Source: Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data"; Agresti & Coull 1998 for a single proportion.
    """
    places = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    size = max(1, round(len(values) / (places.max() + 1)))
    unseen = places.max() + 1 + np.repeat((0, 1), size)
    return np.concatenate((values, np.repeat((low, high), size))), np.concatenate((places, unseen))


def cluster_bootstrap(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of the mean of values [n] over resamples of whole clusters.

    Raises: DataError as `clustered_mean` does.
    Source: Davison & Hinkley 1997, section 3.8 (clusters resampled, their contents kept).
    """
    values = np.asarray(values, dtype=np.float64)
    _check(values, clusters)
    sums, sizes = cluster_sums(values, clusters)
    count, generator = len(sizes), np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, 100):  # a hundred at a time: [100, G] numbers are held, not [2000, G]
        rows = slice(start, min(start + 100, num_resamples))
        drawn = generator.integers(count, size=(rows.stop - rows.start, count))
        means[rows] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return float(low), float(high)


def _check(values: np.ndarray, clusters: np.ndarray | None) -> None:
    count = num_clusters(clusters, values.shape[-1])
    if count < 2:
        raise DataError(f"a standard error needs two clusters (prompts) at least, and there are {count}")
    if clusters is not None and len(clusters) != values.shape[-1]:
        raise DataError(f"there are {values.shape[-1]} values, but clusters of {len(clusters)}")
    if not np.isfinite(values).all():
        raise DataError("a value is not a finite number; leave out what could not be scored, for both models")
