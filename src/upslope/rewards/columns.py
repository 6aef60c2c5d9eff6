"""What a rule compares a completion with: a column of the data, holding one reference or a list. Imports no torch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from upslope.errors import RewardError

RowReward = Callable[..., float]
AsyncRowReward = Callable[..., Awaitable[float]]
Rule = TypeVar("Rule", bound=Callable[..., Any])


def needing(column: str, rule: Rule) -> Rule:
    """The rule, marked with the column it compares with, so that a task can tell at once whether there is one."""
    rule.columns = (column,)  # type: ignore[attr-defined]
    return rule


def value_of(columns: Mapping[str, Any], column: str) -> Any:
    """What the row has in the column. Raises: RewardError when it has nothing there."""
    if columns.get(column) is None:
        raise RewardError(f"there is no column {column!r} to compare with")
    return columns[column]


def references(columns: Mapping[str, Any], column: str) -> list[str]:
    """The texts of the row's column, at least one: a list holds several references.

    Raises: RewardError when there is none.
    """
    value = value_of(columns, column)
    texts = [str(text) for text in value] if isinstance(value, list | tuple) else [str(value)]
    if not texts:
        raise RewardError(f"the column {column!r} is an empty list; give at least one reference")
    return texts
