"""Student's t: tail probabilities and quantiles, without a dependency."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300
_MOST_TERMS = 10_000
_BISECTIONS = 60
_NORMAL_FROM = 1e7
"""Degrees of freedom from which t and normal quantiles agree to six digits and more."""


def upper_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t with df > 0 degrees of freedom.

    Source: Abramowitz & Stegun 1964, 26.7.1, by the regularised incomplete beta function.
    """
    if df >= _NORMAL_FROM:
        return NormalDist().cdf(-t)
    square = t * t
    if square < 1.0:  # 1 - square / (df + square) would round
        tail = 0.5 * (1.0 - _incomplete_beta(square / (df + square), 0.5, df / 2))
    else:
        tail = 0.5 * _incomplete_beta(df / (df + square), df / 2, 0.5)
    return tail if t >= 0 else 1.0 - tail


@lru_cache(maxsize=4096)
def quantile(probability: float, df: float) -> float:
    """The t with P(T <= t) = probability, for 0 < probability < 1, by bisection of `upper_tail`."""
    if probability < 0.5:
        return -quantile(1.0 - probability, df)
    low, high = 0.0, 1.0
    while upper_tail(high, df) > 1.0 - probability:
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if upper_tail(middle, df) > 1.0 - probability else (low, middle)
    return 0.5 * (low + high)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), by Lentz's continued fraction on the side where it converges fast."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(front) / a * _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Press et al. 2007, Numerical Recipes, section 6.4."""
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away(1.0 + term * d)
            c = _away(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return value


def _away(value: float) -> float:
    """The value, kept from 0."""
    return value if abs(value) > _TINY else _TINY
