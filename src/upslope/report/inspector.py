"""Logged samples in the compact form that a page can hold by the thousand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_DIGITS = 4  # significant; what a reader can use, at a third of the size


def inspect(samples: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The samples for a page, and how many lack what every sample has, as a line from elsewhere may.

    Each has step, held_out, prompt_id, prompt, group, sample, text, stop_reason, score, terms, failure and, one an
    action: ids, pieces (None where the run stored none), logprobs, and where the method has them kl, values, advantages
    and rewards.
    """
    rollouts, refused = [], 0
    for sample in samples:
        try:
            rollouts.append(_rollout(sample))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            refused += 1
    return rollouts, refused


def _rollout(sample: Mapping[str, Any]) -> dict[str, Any]:
    count = len(sample["actions"])
    logprobs = _column(sample.get("old_logprobs") or sample["engine_logprobs"], count)
    reference = _column(sample.get("ref_logprobs"), count)
    pieces = sample.get("pieces")
    if pieces is not None:
        pieces = [str(piece) for piece in pieces]
        _check_length(pieces, count)
    return {
        "step": sample["step"],
        "held_out": sample["kind"] == "held_out",
        "prompt_id": int(sample["prompt_id"]),
        "prompt": prompt_view(sample["prompt"]),
        "group": int(sample["group"]),
        "sample": int(sample["sample"]),
        "version": int(sample["version"]),
        "text": str(sample["text"]),
        "stop_reason": str(sample["stop_reason"]),
        "score": _rounded(math.fsum(sample["rewards"])) if sample["rewards"] else None,
        "terms": {str(name): _rounded(value) for name, value in sample["metrics"].items() if name != "reward"},
        "failure": None if sample["failure"] is None else str(sample["failure"]),
        "ids": [int(action) for action in sample["actions"]],
        "pieces": pieces,
        "logprobs": _packed(logprobs),
        "kl": None if reference is None or logprobs is None else _packed(_difference(logprobs, reference)),
        "values": _packed(_column(sample.get("values"), count)),
        "advantages": _packed(_column(sample.get("advantages"), count)),
        "rewards": _packed(_column(sample["rewards"], count)),
    }


def prompt_view(content: Any) -> str | list[list[str]]:
    """Plain text as it is, a chat as [role, content] pairs."""
    if isinstance(content, str):
        return content
    return [[str(message["role"]), str(message["content"])] for message in content]


def _column(values: Any, count: int) -> list[float] | None:
    """One number an action; None where the sample has none of these."""
    if not values:
        return None
    _check_length(values, count)
    return [float(value) for value in values]


def _check_length(values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{len(values)} entries for {count} actions")


def _difference(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _packed(values: Sequence[float] | None) -> float | list[float | None] | None:
    """The column, or its one number where all are equal."""
    if not values:
        return None
    rounded = [_rounded(value) for value in values]
    return rounded[0] if len(set(rounded)) == 1 else rounded


def _rounded(value: float) -> float | None:
    """Four significant digits; None for what is not finite, which JSON does not have."""
    value = float(value)
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short
