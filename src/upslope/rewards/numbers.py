"""Rewards for answers that are numbers, from the last number written. Imports no torch.

Each is a row function f(completion, answer, ...) -> float in [0, 1]; answer is a column of the data.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_SIGN = r"(?:(?<![\w).])[-+\u2212])?"
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\w)\.[0-9]+"
_NUMBER = re.compile(f"{_SIGN}(?:{_DIGITS})")


def last_number(text: str) -> Decimal | None:
    """The last number written in the text, or None: `= -1,234.50.` gives -1234.5.

    A minus or plus counts as a sign only where no letter, digit or bracket stands before it, so `8-6` ends in 6.
    """
    found = None
    for match in _NUMBER.finditer(text):
        found = match.group()
    return None if found is None else Decimal(found.replace(",", "").replace("\u2212", "-"))


def to_number(answer: Any) -> Decimal:
    """The number a data column holds: an int or float, or text whose last number counts.

    Raises: ValueError when it holds none.
    """
    number = last_number(str(answer))
    if number is None:
        raise ValueError(f"the answer column holds {answer!r}, in which there is no number")
    return number


def correct(completion: str, answer: Any, terminated: bool) -> float:
    """1 where the last number written equals the answer and the row ended by itself, else 0."""
    return float(terminated and last_number(completion) == to_number(answer))


def digits_right(completion: str, answer: Any) -> float:
    """Share of digits that are right, place by place from the units, over the longer number; 0 for another sign."""
    written, target = last_number(completion), to_number(answer)
    if written is None or written.is_signed() != target.is_signed():
        return 0.0
    ours, theirs = _places(written), _places(target)
    right = sum(a == b for a, b in zip(reversed(ours), reversed(theirs), strict=False))
    return right / max(len(ours), len(theirs))


def closeness(completion: str, answer: Any) -> float:
    """max(0, 1 - |x - answer| / max(1, |answer|)) for the last number x written; 0 where there is none."""
    written, target = last_number(completion), to_number(answer)
    if written is None:
        return 0.0
    return float(max(Decimal(0), 1 - abs(written - target) / max(Decimal(1), abs(target))))


def brevity(completion: str) -> float:
    """Share of the written characters (blank ones at the ends aside) that are the last number; 1 for a bare number."""
    text = completion.strip()
    matches = list(_NUMBER.finditer(text))
    return len(matches[-1].group()) / len(text) if matches else 0.0


def ended(completion: str, terminated: bool) -> float:  # noqa: ARG001 (the parameter makes it a row function)
    """1 where the row ended by itself, 0 where it was cut at its length limit."""
    return float(terminated)


def _places(number: Decimal) -> str:
    return str(int(abs(number)))
