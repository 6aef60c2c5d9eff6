"""Several tests at once: non-inferiority by task, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from upslope.errors import DataError
from upslope.evaluation import student_t


def holm(p_values: Sequence[float]) -> list[float]:
    """p~_(i) = max over j <= i of min(1, (m - j + 1) p_(j)): p-values that may each be held against one level.

    The chance that any true hypothesis is rejected is at most the level, however the tests depend on each other.
    Raises: DataError when one is no probability.
    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise DataError(f"p-values lie in [0, 1], not {list(p_values)}")
    order = np.argsort(values, kind="stable")
    steps = (len(values) - np.arange(len(values))) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def non_inferiority_p(difference: float, se: float, df: float, *, margin: float) -> float:
    """P(T >= (difference + margin) / se): how well a true difference of -margin would explain what was found.

    Small: the candidate is not worse by the margin.
    Raises: DataError for a margin or a standard error that is not above 0.
    Source: Schuirmann 1987, one of his two one-sided tests.
    """
    if not margin > 0.0 or not se > 0.0:
        raise DataError(f"the margin ({margin}) and the standard error ({se}) of non-inferiority must be above 0")
    return student_t.upper_tail((difference + margin) / se, df)
