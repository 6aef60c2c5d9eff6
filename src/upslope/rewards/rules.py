"""Plain rules: each factory returns a row function. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from upslope.errors import DependencyError, RewardError
from upslope.rewards.columns import RowReward, needing, references, value_of
from upslope.rewards.numbers import last_number, to_number


def exact_match(column: str = "answer", *, ignore_case: bool = False) -> RowReward:
    """1 where the completion equals the column (one of the texts in it), blank space at the ends aside, else 0."""

    def plain(text: str) -> str:
        return text.strip().casefold() if ignore_case else text.strip()

    def exact_match(completion: str, **columns: Any) -> float:
        return float(any(plain(completion) == plain(text) for text in references(columns, column)))

    return needing(column, exact_match)


def numeric_answer(column: str = "answer") -> RowReward:
    """1 where the last number written equals the last number in the column (`#### 1,200` is 1200), else 0."""

    def numeric_answer(completion: str, **columns: Any) -> float:
        return float(last_number(completion) == to_number(value_of(columns, column)))

    return needing(column, numeric_answer)


def contains(column: str = "answer", *, ignore_case: bool = False) -> RowReward:
    """1 where the completion contains the column's text (one of the texts in it), else 0."""

    def plain(text: str) -> str:
        return text.casefold() if ignore_case else text

    def contains(completion: str, **columns: Any) -> float:
        return float(any(plain(text) in plain(completion) for text in references(columns, column)))

    return needing(column, contains)


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


def repetition_penalty(n: int = 3) -> RowReward:
    """-(share of the row's n-grams of generated tokens that stand in it earlier as well); 0 where all are new.

    Raises: RewardError unless n >= 1.
    """
    if n < 1:
        raise RewardError(f"repetition_penalty got n={n}; an n-gram has at least 1 token")

    def repetition_penalty(completion: str, completion_ids: Sequence[int]) -> float:  # noqa: ARG001 (a row function)
        grams = list(zip(*(completion_ids[start:] for start in range(n)), strict=False))
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0

    return repetition_penalty


def starts_with(text: str) -> RowReward:
    """1 where the completion begins with the text, blank space before it aside, else 0."""

    def starts_with(completion: str) -> float:
        return float(completion.lstrip().startswith(text.lstrip()))

    return starts_with


def ends_with(text: str) -> RowReward:
    """1 where the completion ends with the text, blank space behind it aside, else 0."""

    def ends_with(completion: str) -> float:
        return float(completion.rstrip().endswith(text.rstrip()))

    return ends_with


def json_parsable(keys: Sequence[str] = ()) -> RowReward:
    """1 where the completion is one JSON value (RFC 8259), and an object with all the keys where some are given."""

    def json_parsable(completion: str) -> float:
        try:
            value = json.loads(completion, parse_constant=_refuse, parse_int=float)  # int() ends at 4300 digits
        except (ValueError, RecursionError):
            return 0.0
        return float(not keys or (isinstance(value, dict) and all(key in value for key in keys)))

    return json_parsable


def json_schema(schema: Mapping[str, Any] | str | None = None, *, column: str | None = None) -> RowReward:
    """1 where the completion is one JSON value that the schema allows, else 0; other hosts are not asked for a schema.

    The schema is a table, the path of a JSON file, or what each row has in the column, as a table or as JSON.
    Needs `upslope[schema]`.
    Raises: RewardError where it is no JSON Schema, or not exactly one of the two is given; DependencyError without
    jsonschema.
    """
    if (schema is None) == (column is None):
        raise RewardError("json_schema needs a schema or a column that holds one, and not both")
    if isinstance(schema, str):
        try:
            schema = json.loads(Path(schema).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RewardError(f"json_schema cannot read {schema!r}: {error}") from error
    fixed = None if schema is None else _json(schema)
    _validator(fixed or "{}")  # what cannot work is told here, not at the first row

    def json_schema(completion: str, **columns: Any) -> float:
        allowed = _validator(_json(value_of(columns, column)) if fixed is None and column else fixed or "")
        try:
            value = json.loads(completion, parse_constant=_refuse, parse_int=_integer)
            return float(allowed.is_valid(value))
        except (ValueError, RecursionError):
            return 0.0

    return needing(column, json_schema) if column else json_schema


def cost_matrix(column: str = "label", *, table: Mapping[str, Mapping[str, float]] | None = None) -> RowReward:
    """`table[true label][chosen label]`; where the table is silent, 1 for the right label and 0 for any other.

    The completion is the chosen label. {"spam": {"ham": -5}} charges 5 for spam that is let through.
    Raises: RewardError where an entry is no finite number.
    """
    entries = {str(true): dict(row) for true, row in (table or {}).items()}
    for true, row in entries.items():
        for chosen, earned in row.items():
            if not isinstance(earned, int | float) or not math.isfinite(earned):
                raise RewardError(f"cost_matrix has {earned!r} for {true!r} taken for {chosen!r}; give a finite number")

    def cost_matrix(completion: str, **columns: Any) -> float:
        true, chosen = str(value_of(columns, column)).strip(), completion.strip()
        return float(entries.get(true, {}).get(chosen, true == chosen))

    cost_matrix.labels = frozenset({*entries, *(chosen for row in entries.values() for chosen in row)})  # type: ignore[attr-defined]
    return needing(column, cost_matrix)


def _json(schema: Any) -> str:
    try:
        return schema if isinstance(schema, str) else json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise RewardError(f"json_schema got no JSON Schema: {error}") from error


@lru_cache(maxsize=256)
def _validator(text: str) -> Any:
    """A validator of the draft that the schema, as JSON, names, and of the newest where it names none."""
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
        from jsonschema_specifications import REGISTRY
    except ImportError as error:
        raise DependencyError("jsonschema", "schema") from error
    try:
        schema = json.loads(text)
        if not isinstance(schema, Mapping | bool):
            raise ValueError(f"{schema!r:.100} is no table")
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (SchemaError, ValueError) as error:
        raise RewardError(f"json_schema got no JSON Schema: {str(error).splitlines()[0]}") from error
    return kind(schema, registry=REGISTRY)


def _integer(digits: str) -> int:
    return int(Decimal(digits))  # int() of a text ends at 4300 digits


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is Python's, not JSON's")
