"""Sums, differences and products to be answered with the number only; needs no data and no dependency."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Literal

from upslope.errors import RecipeError
from upslope.records import Prompt
from upslope.rewards.numbers import brevity, closeness, correct, digits_right, ended
from upslope.rewards.terms import RewardTerm
from upslope.tasks.prompts import EVAL_IDS, make_prompt
from upslope.tasks.task import Task

Operation = Literal["+", "-", "*"]
Pair = tuple[int, int]

TEMPLATE = "{a} {operation} {b}"
SYSTEM = "Answer with the number only."
SHAPING = {"correct": 1.0, "digits_right": 0.3, "closeness": 0.3, "brevity": 0.2, "ended": 0.1}

_TERMS: dict[str, Callable[..., float]] = {
    "correct": correct,
    "digits_right": digits_right,
    "closeness": closeness,
    "brevity": brevity,
    "ended": ended,
}


def arithmetic(
    *,
    digits: int | Sequence[int] = 2,
    operation: Operation = "+",
    num_train: int = 4000,
    num_eval: int = 200,
    seed: int = 0,
    template: str = TEMPLATE,
    chat: bool = True,
    system: str | None = SYSTEM,
    shaping: Mapping[str, float] = SHAPING,
) -> Task:
    """`a operation b` for a and b of the given number of digits (one number for both, or one each).

    A number of d digits is drawn from 10^(d-1) .. 10^d - 1 (0 .. 9 for d = 1). The held-out pairs are disjoint from
    the training pairs, also with a and b exchanged; both are decided by seed alone. At most num_train pairs are kept,
    fewer where there are no more. template has the fields {a}, {b} and {operation}. shaping gives the weights of the
    reward terms `correct`, `digits_right`, `closeness`, `brevity` and `ended` (see `upslope.rewards.numbers`); the
    metric is `correct`: the last number written equals the answer and the row ended by itself.

    Raises: RecipeError when a setting is out of range or there are too few pairs.
    """
    terms = _shaping_terms(shaping)
    train, held_out = _pairs(_ranges(digits), num_train, num_eval, seed)
    answer = _operator(operation)

    def prompts(pairs: Sequence[Pair], first_id: int) -> list[Prompt]:
        records = [_record(pair, answer, operation, template) for pair in pairs]
        how: dict[str, Any] = {"column": "prompt", "completion": None, "chat": chat, "system": system if chat else None}
        return [make_prompt(record, first_id + index, **how) for index, record in enumerate(records)]

    return Task(
        prompts=prompts(train, 0),
        reward=terms,
        metric=correct,
        eval_prompts=prompts(held_out, EVAL_IDS),
        name="arithmetic",
    )


def _shaping_terms(shaping: Mapping[str, float]) -> list[RewardTerm]:
    for name in shaping:
        if name not in _TERMS:
            near = difflib.get_close_matches(name, _TERMS, n=1) or list(_TERMS)
            raise RecipeError(f"arithmetic has no shaping term {name!r}; did you mean {', '.join(near)}?")
    terms = [RewardTerm(_TERMS[name], weight) for name, weight in shaping.items() if weight != 0]
    if not terms:
        raise RecipeError("arithmetic got no shaping term with a weight; give correct = 1.0 at least")
    return terms


def _operator(operation: str) -> Callable[[int, int], int]:
    operators: dict[str, Callable[[int, int], int]] = {
        "+": int.__add__,
        "-": int.__sub__,
        "*": int.__mul__,
    }
    if operation not in operators:
        raise RecipeError(f"arithmetic got operation {operation!r}; it must be one of {', '.join(operators)}")
    return operators[operation]


def _ranges(digits: int | Sequence[int]) -> tuple[range, range]:
    counts = [digits, digits] if isinstance(digits, int) else list(digits)
    if len(counts) != 2 or not all(isinstance(count, int) and 1 <= count <= 15 for count in counts):
        raise RecipeError(
            f"arithmetic got digits = {digits!r}; it must be a number from 1 to 15, or one for a and one for b"
        )
    first, second = (range(10 ** (count - 1) if count > 1 else 0, 10**count) for count in counts)
    return first, second


def _pairs(ranges: tuple[range, range], num_train: int, num_eval: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Distinct ordered pairs, held-out ones first; no training pair is a held-out one or its mirror image."""
    first, second = ranges
    total = len(first) * len(second)
    drawn = Random(seed).sample(range(total), min(total, 4 * (num_train + 2 * num_eval)))
    pairs = [(first[index // len(second)], second[index % len(second)]) for index in drawn]
    kinds = list(dict.fromkeys((min(pair), max(pair)) for pair in pairs))[:num_eval]
    held_out_kinds = set(kinds)
    train = [pair for pair in pairs if (min(pair), max(pair)) not in held_out_kinds][:num_train]
    if num_train < 1 or num_eval < 0 or len(kinds) < num_eval or not train:
        raise RecipeError(
            f"arithmetic has {total} pairs of these digits, too few for num_train = {num_train} and "
            f"num_eval = {num_eval}; ask for fewer, or for more digits"
        )
    return train, kinds


def _record(pair: Pair, answer: Callable[[int, int], int], operation: str, template: str) -> dict[str, Any]:
    a, b = pair
    try:
        prompt = template.format(a=a, b=b, operation=operation)
    except (KeyError, IndexError, ValueError) as error:
        raise RecipeError(
            f"the arithmetic template {template!r} may hold {{a}}, {{b}}, {{operation}} only ({error})"
        ) from error
    return {"prompt": prompt, "a": a, "b": b, "answer": str(answer(a, b))}
