"""Plain rules: each factory returns a row function. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from upslope.errors import RewardError
from upslope.rewards.numbers import last_number, to_number

RowReward = Callable[..., float]


def exact_match(column: str = "answer", *, ignore_case: bool = False) -> RowReward:
    """1 where the completion equals the column, blank space at the ends aside, else 0."""

    def exact_match(completion: str, **columns: Any) -> float:
        pair = completion.strip(), str(_reference(columns, column)).strip()
        return float(pair[0].casefold() == pair[1].casefold() if ignore_case else pair[0] == pair[1])

    return _needing(column, exact_match)


def numeric_answer(column: str = "answer") -> RowReward:
    """1 where the last number written equals the last number in the column (`#### 1,200` is 1200), else 0."""

    def numeric_answer(completion: str, **columns: Any) -> float:
        return float(last_number(completion) == to_number(_reference(columns, column)))

    return _needing(column, numeric_answer)


def contains(column: str = "answer", *, ignore_case: bool = False) -> RowReward:
    """1 where the completion contains the column's text, else 0."""

    def contains(completion: str, **columns: Any) -> float:
        part = str(_reference(columns, column))
        return float(part.casefold() in completion.casefold() if ignore_case else part in completion)

    return _needing(column, contains)


def regex_match(pattern: str, *, full: bool = False) -> RowReward:
    """1 where the pattern is found in the completion (`full`: matches all of it), else 0.

    Raises: RewardError when the pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RewardError(
            f"regex_match got the pattern {pattern!r}, which is no regular expression: {error}"
        ) from error

    def regex_match(completion: str) -> float:
        return float(bool(compiled.fullmatch(completion) if full else compiled.search(completion)))

    return regex_match


def length_penalty(per_token: float) -> RowReward:
    """-per_token * (number of generated tokens)."""

    def length_penalty(completion: str, num_tokens: int) -> float:  # noqa: ARG001 (makes it a row function)
        return -per_token * num_tokens

    return length_penalty


def overlong_penalty(max_tokens: int, cache_tokens: int) -> RowReward:
    """0 up to max_tokens - cache_tokens, then a straight line down to -1 at max_tokens and beyond, by length in tokens.

    Raises: RewardError unless 0 < cache_tokens <= max_tokens.
    Source: DAPO, arXiv:2503.14476, eq. 13.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise RewardError(
            f"overlong_penalty got cache_tokens={cache_tokens} and max_tokens={max_tokens}; "
            "it needs 0 < cache_tokens <= max_tokens"
        )

    def overlong_penalty(completion: str, num_tokens: int) -> float:  # noqa: ARG001 (makes it a row function)
        return min(0.0, max(-1.0, (max_tokens - cache_tokens - num_tokens) / cache_tokens))

    return overlong_penalty


def _needing(column: str, rule: RowReward) -> RowReward:
    """The rule, marked with the column it compares with, so that a task can tell at once whether there is one."""
    rule.columns = (column,)  # type: ignore[attr-defined]
    return rule


def _reference(columns: dict[str, Any], column: str) -> Any:
    if column not in columns:
        raise RewardError(f"there is no column {column!r} to compare with")
    return columns[column]
