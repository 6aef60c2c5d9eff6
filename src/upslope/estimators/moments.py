"""Mean and standard deviation over actions, mergeable over ranks, and whitening."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.scan import check_finite, promote


@dataclass(frozen=True, slots=True)
class Moments:
    """Number of values, mean, sum of squared deviations, smallest and largest value."""

    count: int
    mean: float
    squares: float
    low: float
    high: float

    @staticmethod
    def of(x: Tensor) -> Moments:
        """The moments of x [M].

        Raises: RecordError when x is empty or holds a non-finite number.
        """
        if not x.numel():
            raise RecordError("there are no values to take moments of; drop the empty batch")
        check_finite("the values to whiten", x)
        (x,) = promote(x.detach())
        mean = x.mean()
        squares = (x - mean).square().sum()
        return Moments(x.numel(), float(mean), float(squares), float(x.min()), float(x.max()))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together.

        Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 1.5.
        """
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        squares = self.squares + other.squares + step * step * self.count * other.count / count
        return Moments(count, mean, squares, min(self.low, other.low), max(self.high, other.high))

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1); exactly 0 where the largest value equals the smallest."""
        return 0.0 if self.low == self.high else math.sqrt(self.squares / (self.count - 1))


def whiten(x: Tensor, *, moments: Moments | None = None) -> Tensor:
    """(x - mean) / std over all actions [M], sample standard deviation (n - 1); exactly 0 where max == min.

    `moments` replaces the moments of x itself where x is part of a larger batch, over several ranks say. Advantages
    may be whitened; returns never are.
    Raises: RecordError when x is empty or holds a non-finite number.
    """
    moments = Moments.of(x) if moments is None else moments
    (x,) = promote(x)
    return (x - moments.mean) / moments.std if moments.std else torch.zeros_like(x)
