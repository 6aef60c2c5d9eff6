"""Answers that are mathematics, compared as such by math-verify. Needs `upslope[maths]`; imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from threading import current_thread, main_thread
from typing import Any

from upslope.errors import DependencyError, RewardError
from upslope.rewards.columns import RowReward, needing, references


def math_answer(column: str = "answer", *, timeout_s: int = 5) -> RowReward:
    r"""1 where the last mathematics in the completion equals the column's (one of those in it), else 0.

    LaTeX or plain: `\boxed{\frac12}`, `$0.5$` and `so it is 1/2` are one answer, and so are x^2 + 2x + 1 and
    (x + 1)^2. A column without `$` or `\boxed` is read as LaTeX. A row fails where the column is no mathematics, or
    where reading or comparing takes more than timeout_s, a whole number of seconds.

    Raises: DependencyError without math-verify; RewardError unless timeout_s is at least 1.
    Source: https://github.com/huggingface/Math-Verify
    """
    if find_spec("math_verify") is None:  # to import it takes seconds, which the worker spends
        raise DependencyError("math-verify", "maths")
    if not (isinstance(timeout_s, int) and timeout_s >= 1):
        raise RewardError(f"math_answer got timeout_s={timeout_s!r}; it must be a whole number of seconds from 1 on")

    def math_answer(completion: str, **columns: Any) -> float:
        if current_thread() is not main_thread():  # math-verify's time limits are signals, which no other thread gets
            raise RewardError("math_answer works in a process's main thread only; set reward.isolation = 'process'")
        true = [_expressions(_marked(text), timeout_s) for text in references(columns, column)]
        if not all(true):
            raise RewardError(f"the column {column!r} holds no mathematics: {columns[column]!r:.200}")
        found = _expressions(completion, timeout_s)
        return float(any(_equal(*pair, timeout_s) for each in true for pair in product(each, found)))

    return needing(column, math_answer)


def _marked(text: str) -> str:
    return text if "$" in text or r"\boxed" in text else f"${text}$"


def _expressions(text: str, timeout_s: int) -> list[Any]:
    """What math-verify reads in a text: an expression and how it was written; nothing where there is none."""
    from math_verify import parse
    from math_verify.errors import TimeoutException

    try:
        return list(parse(text, parsing_timeout=timeout_s, raise_on_error=True))
    except TimeoutException:  # no Exception: uncaught it would end the worker
        raise RewardError(f"an answer takes more than {timeout_s} s to read: {text[-200:]!r}") from None
    except Exception:  # of parsers, on what they cannot read
        return []


def _equal(true: Any, found: Any, timeout_s: int) -> bool:
    from math_verify import verify
    from math_verify.errors import TimeoutException

    try:
        return bool(verify(true, found, timeout_seconds=timeout_s, raise_on_error=True))
    except TimeoutException:
        raise RewardError(f"an answer takes more than {timeout_s} s to compare with {str(true)[:200]!r}") from None
    except Exception:  # of SymPy's, on what it cannot compare
        return False
