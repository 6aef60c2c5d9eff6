"""Two models on several tasks: per task, on the whole, and whether b is nowhere worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from upslope.errors import DataError
from upslope.evaluation import student_t
from upslope.evaluation.compare import compare
from upslope.evaluation.comparison import Comparison
from upslope.evaluation.ensembles import Candidate
from upslope.evaluation.intervals import Interval
from upslope.evaluation.multiplicity import holm
from upslope.evaluation.paired import Difference
from upslope.evaluation.sources import Model
from upslope.evaluation.trial import Asked
from upslope.tasks import Task


@dataclass(frozen=True, slots=True)
class AcrossTasks:
    """comparisons: one a task. macro: the mean of their differences. worse: Holm's p-values against "b is worse by the
    margin", one a task; nowhere_worse: whether all of them are below 1 - confidence."""

    comparisons: tuple[Comparison, ...]
    macro: Interval
    worse: tuple[float, ...]
    nowhere_worse: bool


def compare_across(
    a: Candidate,
    b: Candidate,
    tasks: Sequence[Task | str],
    *,
    margin: float,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
    control: Model | None = None,
    **asked: Unpack[Asked],
) -> AcrossTasks:
    """`compare` on each task, the mean difference over tasks, and non-inferiority on every one of them.

    Tasks count alike and are independent; each is answered whole, for a t interval. Other settings are those of
    `compare`.
    Raises: DataError without a task; and as `compare` does.
    """
    if not tasks:
        raise DataError("there is no task to compare on")
    how: dict[str, Any] = {"margin": margin, "confidence": confidence, "bounds": bounds, "control": control}
    found = [compare(a, b, task, **how, **asked) for task in tasks]
    worse, macro = combined([each.difference for each in found], confidence=confidence)
    return AcrossTasks(tuple(found), macro, worse, max(worse) <= 1.0 - confidence)


def combined(differences: Sequence[Difference], *, confidence: float) -> tuple[tuple[float, ...], Interval]:
    """Holm's p-values of non-inferiority by task, and the mean difference with its t interval.

    se = sqrt(sum se_k^2) / K, with Satterthwaite's degrees of freedom.
    Raises: DataError where a task's reward is constant and unbounded.
    Source: Welch 1947.
    """
    variances = [each.se**2 for each in differences]
    total = sum(variances)
    constant = [number for number, each in enumerate(differences, 1) if not math.isfinite(each.se)]
    if constant:
        raise DataError(
            f"the reward of task {constant[0]} is constant, so there is no interval over tasks; give bounds"
        )
    df = total**2 / sum(v**2 / each.df for v, each in zip(variances, differences, strict=True))
    estimate = sum(each.estimate for each in differences) / len(differences)
    half = student_t.quantile(0.5 + confidence / 2, df) * math.sqrt(total) / len(differences)
    worse = [1.0 if each.non_inferiority is None else each.non_inferiority for each in differences]
    return tuple(holm(worse)), Interval(estimate, estimate - half, estimate + half)
