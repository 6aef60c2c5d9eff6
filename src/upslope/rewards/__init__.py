"""Reward functions: any Python callable, run in a worker process, weighted and added into one score a row.

Names are imported on first use, so that a reward worker, which needs none of them, starts in a tenth of a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.rewards.numbers import brevity as brevity
    from upslope.rewards.numbers import closeness as closeness
    from upslope.rewards.numbers import correct as correct
    from upslope.rewards.numbers import digits_right as digits_right
    from upslope.rewards.numbers import ended as ended
    from upslope.rewards.numbers import last_number as last_number
    from upslope.rewards.rules import contains as contains
    from upslope.rewards.rules import exact_match as exact_match
    from upslope.rewards.rules import length_penalty as length_penalty
    from upslope.rewards.rules import numeric_answer as numeric_answer
    from upslope.rewards.rules import overlong_penalty as overlong_penalty
    from upslope.rewards.rules import regex_match as regex_match
    from upslope.rewards.scorer import Scorer as Scorer
    from upslope.rewards.scorer import count_failures as count_failures
    from upslope.rewards.terms import RewardTerm as RewardTerm

_HOME_OF = {
    "brevity": "numbers",
    "closeness": "numbers",
    "correct": "numbers",
    "digits_right": "numbers",
    "ended": "numbers",
    "last_number": "numbers",
    "contains": "rules",
    "exact_match": "rules",
    "length_penalty": "rules",
    "numeric_answer": "rules",
    "overlong_penalty": "rules",
    "regex_match": "rules",
    "Scorer": "scorer",
    "count_failures": "scorer",
    "RewardTerm": "terms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
