"""Confidence sequences: intervals that hold at all sample sizes at once, so one may look, and stop, at any time."""

from __future__ import annotations

import math

import numpy as np

FIRST_LOOK = 30
"""Clusters from which the asymptotic sequence is looked at: before, its normal approximation does not hold."""

_TRUNCATION = 0.5
_BISECTIONS = 40


def asymptotic_radius(num: np.ndarray | float, *, confidence: float, tuned_for: float) -> np.ndarray:
    """sqrt(2 (t r^2 + 1) / (t r^2) log(sqrt(t r^2 + 1) / alpha)): standard errors on either side, after t values.

    num is t, the number of independent values (clusters) so far. mean -+ radius * se covers the true mean at all t
    from a first look on with probability `confidence`, as that look goes to infinity. r makes the radius smallest
    (about 3.0 at 95%, where a fixed t needs 1.96) at t = tuned_for.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, arXiv:2103.06476, theorem 2.2 and appendix B.2.
    """
    alpha = 1.0 - confidence
    rho2 = (-2.0 * math.log(alpha) + math.log(-2.0 * math.log(alpha) + 1.0)) / tuned_for
    scaled = np.asarray(num, dtype=np.float64) * rho2
    radius: np.ndarray = np.sqrt(2.0 * (scaled + 1.0) / scaled * np.log(np.sqrt(scaled + 1.0) / alpha))
    return radius


def betting_log_capital(values: np.ndarray, mean: np.ndarray | float, *, confidence: float) -> np.ndarray:
    """log of what a gambler against `mean` has after each of the values [..., n] in [0, 1], who started with 1.

    The hedged gambler bets half on more and half on less: max(K+, K-) / 2, with K = prod(1 +- lambda_t (x_t - m)) and
    bets lambda_t that the values before t decide. Were m the mean, 1 / alpha would be reached with probability alpha
    at most (Ville's inequality), whatever the distribution and at any time. Returns [..., n]; mean broadcasts [...].
    Source: Waudby-Smith & Ramdas 2024, arXiv:2010.09686, theorem 3 and eq. 26.
    """
    values, mean = np.asarray(values, dtype=np.float64), np.asarray(mean, dtype=np.float64)[..., None]
    bets = _bets(values, confidence)
    gains = [_log_capital(x, bets, m) for x, m in ((values, mean), (1.0 - values, 1.0 - mean))]
    capital: np.ndarray = np.maximum(*gains) - math.log(2.0)
    return capital


def log_capital_above(values: np.ndarray, mean: float, *, confidence: float) -> np.ndarray:
    """log of what a gambler on more than `mean` has after all the values [..., n] in [0, 1], who started with 1: [...].

    K+ of `betting_log_capital` alone: where the mean is `mean` or less, whatever came before, E[K+] is at most 1.
    Source: as `betting_log_capital`.
    """
    values = np.asarray(values, dtype=np.float64)
    capital: np.ndarray = _log_capital(values, _bets(values, confidence), np.asarray(mean))[..., -1]
    return capital


def betting_bounds(values: np.ndarray, *, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The means [...] that no gambler has yet become rich against, by the values [..., n] in [0, 1]: (low, high).

    The intersection over all times up to n. Found by bisection, outwards: the bounds err on the safe side.
    Source: as `betting_log_capital`.
    """
    values = np.asarray(values, dtype=np.float64)
    bets = _bets(values, confidence)
    return _lower(values, bets, confidence), 1.0 - _lower(1.0 - values, bets, confidence)


def _bets(values: np.ndarray, confidence: float) -> np.ndarray:
    """The predictable plug-in: sqrt(2 log(2 / alpha) / (v t log(1 + t))), v the variance of what was seen before t."""
    times = np.arange(1, values.shape[-1] + 1)
    means = (0.5 + values.cumsum(-1)) / (times + 1.0)
    variances = (0.25 + ((values - means) ** 2).cumsum(-1)) / (times + 1.0)
    before = np.concatenate((np.full((*values.shape[:-1], 1), 0.25), variances[..., :-1]), -1)
    bets: np.ndarray = np.sqrt(2.0 * math.log(2.0 / (1.0 - confidence)) / (before * times * np.log1p(times)))
    return bets


def _log_capital(values: np.ndarray, bets: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """log K+ [..., n], falling in mean: no bet risks more than half of the capital."""
    stakes = np.minimum(bets, _TRUNCATION / np.maximum(mean, 1e-12))
    capital: np.ndarray = np.log1p(stakes * (values - mean)).cumsum(-1)
    return capital


def _lower(values: np.ndarray, bets: np.ndarray, confidence: float) -> np.ndarray:
    """The largest mean [...] found against which betting on more has at some time reached 2 / alpha; 0 where none."""
    wanted = math.log(2.0 / (1.0 - confidence))
    low, high = np.zeros(values.shape[:-1]), np.ones(values.shape[:-1])
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        rich = _log_capital(values, bets, middle[..., None]).max(-1) >= wanted
        low, high = np.where(rich, middle, low), np.where(rich, high, middle)
    return low
