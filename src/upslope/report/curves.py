"""A run's metrics as columns, and which of them stand together in one chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

_NO_METRIC = frozenset({"kind", "step", "time"})


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: title, unit, how to read it, and its metrics (a name that ends in / stands for all under it).

    The page shows those that some run has anything for, and gives every metric that none of them claims its own.
    """

    title: str
    unit: str
    about: str
    names: tuple[str, ...]


CHARTS = (
    Chart("Reward", "", "mean score of the sampled rows, before any KL charge", ("reward", "reward_std")),
    Chart("Gold", "", "the task's metric on the sampled rows, whether or not it is rewarded", ("gold",)),
    Chart("Loss", "nats a token", "cross-entropy of the given completions", ("loss",)),
    Chart("Parts of the reward", "", "mean raw value of each reward term", ("reward/",)),
    Chart("KL from the reference", "nats an action", "k1 estimate; how far the policy has moved", ("kl",)),
    Chart("KL of a row", "nats a row", "k1 estimate summed over the row, and its coefficient", ("kl_row", "kl_coef")),
    Chart("Entropy", "nats an action", "exact; near 0 the policy has stopped to explore", ("entropy",)),
    Chart("Length", "actions a row", "mean over the sampled rows", ("length",)),
    Chart("Repetition", "share of 3-grams", "those that stand in their row earlier as well", ("repetition",)),
    Chart("Ended by themselves", "share of rows", "the others were cut at max_new_tokens", ("terminated",)),
    Chart("Clip fraction", "share of actions", "those whose gradient the clip removed", ("clip_fraction",)),
    Chart("Move within the step", "nats an action", "k3 estimate of new against old policy", ("policy_kl",)),
    Chart(
        "Explained variance",
        "",
        "of the returns by the critic: 1 is perfect, 0 a constant, below 0 harmful",
        ("explained_variance",),
    ),
    Chart("Gradient norm", "", "of the policy, before clipping", ("grad_norm",)),
    Chart("Parts of the loss", "", "policy, value and KL", ("loss_policy", "loss_value", "loss_kl")),
    Chart(
        "Engine against trainer",
        "",
        "k3 and largest deviation of the ratio from 1 on sampled actions",
        ("gap_k3", "gap_max"),
    ),
    Chart("Effective sample size", "share", "of the engine's samples under the trainer's policy", ("gap_ess",)),
    Chart("Learning rate", "", "", ("lr",)),
    Chart("Speed", "tokens a second", "of each phase; step counts sampled tokens", ("tokens_per_s/",)),
    Chart("Time of a step", "seconds", "of each part; they sum to the step", ("time/",)),
    Chart("Samples left out", "rows", "failed, or not learned from", ("dropped", "dropped/")),
)
# sums and counts that a chart above already tells
NO_CHART = ("step_s", "rollout_s", "reward_s", "tokens_per_s", "samples", "updates", "skipped")


_MOST_POINTS = 24


def over_optimisation(steps: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """[sqrt(KL), reward, gold] in at most 24 points, each the mean of equally many steps of neighbouring KL.

    KL is that of a row from the frozen start, in nats; below 0, as its estimate may be, it counts as 0. Empty where no
    step has all three. Source: Gao et al. 2023, arXiv:2210.10760, figure 1.
    """
    names = ("kl_row", "reward", "gold")
    known = [
        [float(step[name]) for name in names] for step in steps if all(_is_number(step.get(name)) for name in names)
    ]
    points = sorted([math.sqrt(max(0.0, kl)), *both] for kl, *both in known if all(map(math.isfinite, (kl, *both))))
    count = min(_MOST_POINTS, len(points))
    ends = [len(points) * place // count for place in range(count + 1)] if count else []
    return [[fmean(column) for column in zip(*points[a:b], strict=True)] for a, b in pairwise(ends)]


def metrics_of(steps: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Each number that the steps log as one column [steps], None where a step lacks it or it is not finite."""
    names = {name: None for step in steps for name, value in step.items() if _is_number(value)}
    return {name: [_finite(step.get(name)) for step in steps] for name in names if name not in _NO_METRIC}


def non_finite(steps: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str]]:
    """(step, metric, "nan" or "inf") of every number that is not finite and so cannot be drawn."""
    return [
        (step["step"], name, str(value))
        for step in steps
        for name, value in step.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    return value if _is_number(value) and math.isfinite(value) else None
