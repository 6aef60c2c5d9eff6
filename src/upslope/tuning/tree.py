"""Monte-Carlo tree search over a space of settings: which to try next, after those that were tried.

A node is a part of the space. Above stand the choices that other settings hang on, one child each; below, boxes that
are cut in two where that tells good trials from bad ones best, once they hold enough. The way down takes the child with
the highest upper confidence bound. In the last box, the setting with the highest expected improvement is tried. The
tree follows from the trials alone, so that any number of processes that read them grow the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.tuning.space import Choice, Parameter, Range, Space
from upslope.tuning.surrogate import expected_improvement

_EXPLORATION = 1.0
"""Weight of the confidence term of a node's bound; rewards are ranks from 0 to 1."""
_LEAF = 8
"""A box is split where both parts hold so many trials: the tree gets finer as they come."""
_CANDIDATES = 512
_MODELLED = 200
"""The best trials that the surrogate takes in: its time grows with their cube."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Settings and what came of them; None while they run."""

    values: Mapping[str, Any]
    reward: float | None


def propose(space: Space, tried: Sequence[Tried], generator: np.random.Generator) -> dict[str, Any]:
    """The settings to try next.

    A trial that still runs counts as a visit that found the least (a virtual loss), so that others go elsewhere.
    Source: Kocsis & Szepesvari 2006, for the bound; Wang, Fonseca & Tian 2020, arXiv:2007.00708, for boxes learned from
    the trials with a surrogate in the last; Couetoux et al. 2011 for refinement with the number of visits.
    """
    rewards = _ranks([trial.reward for trial in tried])
    rows, decided = list(range(len(tried))), dict[str, Any]()
    for parameter in _deciding(space):
        if parameter.exists(decided):
            assert isinstance(parameter.domain, Choice)
            children = [
                [row for row in rows if tried[row].values.get(parameter.name) == value]
                for value in parameter.domain.values
            ]
            best = int(np.argmax([_bound(rewards[child], len(rows)) for child in children]))
            decided[parameter.name], rows = parameter.domain.values[best], children[best]
    free = [p for p in space.parameters if p.name not in decided and p.exists(decided)]
    if not free:
        return decided
    box = _Box(free)
    points = np.array([box.encode(tried[row].values) for row in rows]).reshape(len(rows), box.width)
    if len(rows) < 2 * len(free) + 1:
        return decided | box.decode(_farthest(box.draws(generator), points))
    found = (tried[row].reward for row in rows)
    values = np.array([math.nan if reward is None else reward for reward in found])
    return decided | box.decode(_best(box, points, rewards[rows], values, generator))


class _Box:
    """A part of the free parameters' space, as bounds low and high [w] of points: a range is one number in [0, 1], a
    choice one number a value, all 0 but for the chosen one's, so that two choices differ by 1 in distance."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.width = sum(_width(parameter) for parameter in parameters)
        self.low, self.high = np.zeros(self.width), np.ones(self.width)

    def encode(self, values: Mapping[str, Any]) -> list[float]:
        """Values as a point."""
        point: list[float] = []
        for parameter in self.parameters:
            value, domain = values[parameter.name], parameter.domain
            if isinstance(domain, Range):
                point.append(domain.share(value))
            else:
                point += [math.sqrt(0.5) if value == each else 0.0 for each in domain.values]
        return point

    def decode(self, point: np.ndarray) -> dict[str, Any]:
        """A point as values."""
        values, at = {}, 0
        for parameter in self.parameters:
            part, domain = point[at : at + _width(parameter)], parameter.domain
            values[parameter.name] = (
                domain.at(float(part[0])) if isinstance(domain, Range) else domain.values[int(part.argmax())]
            )
            at += len(part)
        return values

    def draws(self, generator: np.random.Generator, near: np.ndarray | None = None) -> np.ndarray:
        """Points [c, w] within the bounds: anywhere, or around one, in some of its parameters, at all distances."""
        size = (self.high - self.low) * 10.0 ** generator.uniform(-2.5, -0.5, size=(_CANDIDATES, 1))
        moved = generator.random((_CANDIDATES, len(self.parameters))) < max(0.5, min(1.0, 3.0 / len(self.parameters)))
        columns, at = [], 0
        for number, parameter in enumerate(self.parameters):
            here = slice(at, at + _width(parameter))
            at = here.stop
            if isinstance(parameter.domain, Range):
                fresh = generator.uniform(self.low[here], self.high[here], size=(_CANDIDATES, 1))
                if near is not None:
                    step = generator.normal(size=(_CANDIDATES, 1)) * size[:, here]
                    fresh = np.clip(near[here] + step, self.low[here], self.high[here])
                fresh = np.array([[parameter.domain.share(parameter.domain.at(share))] for (share,) in fresh.tolist()])
            else:
                allowed = np.flatnonzero(self.high[here] >= math.sqrt(0.5))
                forced = np.flatnonzero(self.low[here] > 0.0)
                chosen = generator.choice(forced if len(forced) else allowed, size=_CANDIDATES)
                fresh = math.sqrt(0.5) * np.eye(here.stop - here.start)[chosen]
            columns.append(fresh if near is None else np.where(moved[:, number : number + 1], fresh, near[here]))
        return np.concatenate(columns, axis=1)


def _best(
    box: _Box, points: np.ndarray, rewards: np.ndarray, values: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The candidate of the highest expected improvement in the box that the bounds lead to, by all trials around it."""
    inside = np.arange(len(points))
    while (cut := _split(points[inside], rewards[inside])) is not None:
        axis, threshold = cut
        below = points[inside, axis] <= threshold
        parts = (inside[below], inside[~below])
        lower, upper = (_bound(rewards[part], len(inside)) for part in parts)
        inside = parts[int(upper > lower)]
        (box.low if upper > lower else box.high)[axis] = threshold
    ended = np.isfinite(values)
    if not ended[inside].any():
        return _farthest(box.draws(generator), points)
    around = points[inside[int(np.nanargmax(values[inside]))]]
    known = np.where(ended, values, np.median(values[ended]))
    modelled = np.argsort(-known, kind="stable")[:_MODELLED]
    candidates = np.concatenate((box.draws(generator), box.draws(generator, near=around)))
    best: np.ndarray = candidates[int(expected_improvement(points[modelled], known[modelled], candidates).argmax())]
    return best


def _split(points: np.ndarray, rewards: np.ndarray) -> tuple[int, float] | None:
    """Axis and threshold that leave the least squared error of the rewards around the means of both parts."""
    best: tuple[float, int, float] | None = None
    for axis in range(points.shape[1]):
        order = np.argsort(points[:, axis], kind="stable")
        places, sums = points[order, axis], rewards[order].cumsum()
        for size in range(_LEAF, len(order) - _LEAF + 1):
            if places[size - 1] < places[size]:
                between = sums[size - 1] ** 2 / size + (sums[-1] - sums[size - 1]) ** 2 / (len(order) - size)
                if best is None or between > best[0]:
                    best = float(between), axis, float(places[size - 1] + places[size]) / 2.0
    return None if best is None else best[1:]


def _bound(rewards: np.ndarray, parent: int) -> float:
    """mean + c sqrt(log N / n); a child that nobody visited comes first."""
    if not len(rewards):
        return math.inf
    return float(rewards.mean()) + _EXPLORATION * math.sqrt(math.log(max(parent, 1)) / len(rewards))


def _ranks(rewards: Sequence[float | None]) -> np.ndarray:
    """Shares [n] of the finished trials that each one is at least as good as, less one half for ties with others; 0 of
    one that runs."""
    ended = np.sort([reward for reward in rewards if reward is not None])
    places = [
        0.0 if r is None else (np.searchsorted(ended, r) + np.searchsorted(ended, r, side="right")) / 2.0 / len(ended)
        for r in rewards
    ]
    return np.array(places, dtype=float)


def _farthest(candidates: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The candidate that is farthest from all points, of a few; the first where there are none."""
    few = candidates[:4]
    distances = ((few[:, None] - points[None]) ** 2).sum(-1).min(1, initial=math.inf)
    farthest: np.ndarray = few[int(distances.argmax())]
    return farthest


def _deciding(space: Space) -> list[Parameter]:
    """The choices that others hang on."""
    named = {name for parameter in space.parameters for name in parameter.when}
    return [parameter for parameter in space.parameters if parameter.name in named]


def _width(parameter: Parameter) -> int:
    return 1 if isinstance(parameter.domain, Range) else len(parameter.domain.values)
