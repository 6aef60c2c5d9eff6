"""When a trial is given up: once its answers show, beside the incumbent's on the same prompts, that it is worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from upslope.evaluation.sequences import log_capital_above

Readings = Mapping[int, Mapping[str, float]]
"""The metric of one run by step, then by prompt."""


def share_of_error(incumbent: int, *, planned: int, error: float) -> float:
    """error / (T + 1) for an incumbent among the first T trials, error / (i (i + 1)) for trial i > T, counted from 1.

    The shares of all incumbents there can ever be sum to `error`, so that T may grow. The best setting is pruned only
    where some incumbent beats it by mistake: its chance is at most the sum, whichever of them it meets.
    """
    number = incumbent + 1
    return error / (planned + 1) if number <= planned else error / (number * (number + 1))


def log_evidence(looks: Sequence[np.ndarray], *, num_looks: int, width: float, level: float) -> float:
    """log of sum_k E_k / K: what a gambler against "never worse" has, who laid 1 / K of his money on each of K looks.

    looks: at each one so far the differences [n_k] to the incumbent, at most width in size, each prompt's (or
    cluster's) in one order that is independent of them. E_k is the capital of betting on more than half for
    (1 - d / width) / 2. Were the setting as good as the incumbent at every look, the chance that the evidence ever
    reaches log(1 / level) is at most `level`, at any number of looks, although they share their prompts: each E_k has a
    mean of 1 at most, hence also their weighted sum, which only grows.
    Source: Vovk & Wang 2021, arXiv:1912.06116, section 3, for averages of e-values; see `betting_log_capital` for E_k.
    """
    assert len(looks) <= num_looks
    if not looks:
        return -math.inf
    capital = [float(log_capital_above((1.0 - d / width) / 2.0, 0.5, confidence=1.0 - level)) for d in looks]
    return float(np.logaddexp.reduce(capital)) - math.log(num_looks)


def paired_looks(
    own: Sequence[Readings], other: Sequence[Readings], groups: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """The differences own - other by cluster of prompts at every look, in turn: seed by seed, step by step.

    own, other: readings of each seed. The look at step t of seed s takes the means over seeds 0 to s at step t, on the
    prompts that all of them scored. Before the first step all trials are alike, and steps that the other never had are
    passed over.
    """
    looks = []
    for seed, readings in enumerate(own):
        for step in sorted(readings):
            shared = [each for each in range(min(seed + 1, len(other))) if step in own[each] and step in other[each]]
            if step == 0 or seed not in shared:
                continue
            pairs = [(own[each][step], other[each][step]) for each in shared]
            known = set.intersection(*({*a} & {*b} for a, b in pairs))
            differences = {name: float(np.mean([a[name] - b[name] for a, b in pairs])) for name in known}
            clusters = [[differences[name] for name in group if name in known] for group in groups]
            if known:
                looks.append(np.array([np.mean(cluster) for cluster in clusters if cluster]))
    return looks


def outside(values: Mapping[str, float], bounds: tuple[float, float]) -> tuple[str, float] | None:
    """A prompt whose value lies outside the bounds, and the value."""
    return next(((name, v) for name, v in values.items() if not bounds[0] <= v <= bounds[1]), None)
