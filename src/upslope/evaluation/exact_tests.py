"""Exact tests of paired differences: their level holds for any number of pairs, however few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

_ENUMERATED = 14
_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class ExactTest:
    """A two-sided p-value, and the name of the test that gave it."""

    p_value: float
    name: str


def exact_test(differences: np.ndarray, *, seed: int = 0) -> ExactTest:
    """P(|sum of randomly signed differences| >= |sum of differences|): is it chance which of a pair is the larger?

    differences [n] of independent pairs (sums of clusters, where there are any). Where two models are equally good the
    difference of a prompt is as likely negative as positive. Pairs without a difference say nothing. Where all others
    are of one size (a metric of 0 and 1, one sample a prompt) this is McNemar's test by the binomial distribution; up
    to 14 pairs are enumerated, and of more 20,000 signs are drawn, which keeps the level exact.
    Source: Fisher 1935, "The Design of Experiments", section 21; McNemar 1947; Phipson & Smyth 2010, arXiv:1603.05766.
    """
    sizes = np.abs(differences[differences != 0.0])
    total = abs(float(differences.sum()))
    if not sizes.size:
        return ExactTest(1.0, "sign-flip")
    if math.isclose(sizes.min(), sizes.max(), rel_tol=1e-9):
        return ExactTest(_binomial(sizes.size, round(total / sizes[0])), "McNemar")
    total -= 1e-9 * float(sizes.sum())  # equal sums, added in another order, are equal
    if sizes.size <= _ENUMERATED:
        signs = np.array(list(product((-1.0, 1.0), repeat=sizes.size)))
        return ExactTest(float((np.abs(signs @ sizes) >= total).mean()), "sign-flip")
    signs = np.random.default_rng(seed).integers(0, 2, size=(_DRAWS, sizes.size), dtype=np.int8)
    reached = int((np.abs((2.0 * signs - 1.0) @ sizes) >= total).sum())
    return ExactTest((reached + 1) / (_DRAWS + 1), "sign-flip, sampled")


def _binomial(count: int, surplus: int) -> float:
    """P(|heads - tails| >= surplus) of `count` fair coins."""
    fewest = (count + surplus) // 2
    if surplus == 0:
        return 1.0
    return min(1.0, sum(math.comb(count, heads) for heads in range(fewest, count + 1)) / (1 << (count - 1)))
