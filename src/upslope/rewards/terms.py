"""A reward term: one function, its weight, and which of the two call shapes it has. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from upslope.errors import RewardError

Shape = Literal["row", "batch"]

_BATCH_NAMES = frozenset({"completions", "completion_ids", "prompts"})
_SHAPES = (
    "write f(completion, prompt=..., <columns>) -> float for one row, "
    "or f(prompts, completions, completion_ids, <columns as lists>, **kwargs) -> list for a batch"
)
ROW_NAMES = frozenset({"prompt", "completion", "completion_ids", "num_tokens", "terminated", "stop_reason"})
BATCH_NAMES = frozenset(
    {"prompts", "completions", "completion_ids", "num_tokens", "terminated", "stop_reason"}
    | {"trainer_state", "log_extra", "log_metric"}
)


@dataclass(frozen=True)
class RewardTerm:
    """weight * function(row): one addend of a row's reward.

    function is called in one of two shapes, told apart by its parameter names, and gets the names it declares
    (all of them when it has `**kwargs`). A row function has `completion` (str); a batch function has `completions`,
    `completion_ids` or `prompts`, as TRL's reward functions do. Besides the columns of the data there are `prompt`,
    `completion_ids`, `num_tokens` (actions of the row), `terminated` and `stop_reason`; a column of the same name
    is hidden by these. Either may be `async def`. weight 0 measures without rewarding. name is the key of the
    term's raw value in `Rollout.metrics`; the function's own name where left empty.

    Raises: RewardError when the function is not callable or has neither shape, or the weight is not finite.
    """

    function: Callable[..., Any]
    weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", function_name(self.function))
        call_shape(self.function)
        if not isinstance(self.weight, int | float) or not abs(self.weight) < float("inf"):
            raise RewardError(f"the weight of reward {self.name!r} is {self.weight!r}; it must be a finite number")

    @property
    def shape(self) -> Shape:
        """`row` or `batch`."""
        return call_shape(self.function)


def function_name(function: Callable[..., Any]) -> str:
    """The name a user knows the function by; lambdas are `lambda`, instances go by their class."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return "lambda" if name == "<lambda>" else str(name)


def parameters(function: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Parameters that can be passed by name -> whether required; and whether the function takes `**kwargs`."""
    kinds = inspect.signature(function).parameters.values()
    named = {p.name: p.default is p.empty for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in kinds)


def call_shape(function: Callable[..., Any]) -> Shape:
    """`row` for a function of one completion, `batch` for a function of many.

    Raises: RewardError that says which two shapes there are.
    """
    name = function_name(function)
    if not callable(function):
        raise RewardError(f"reward {function!r} is not callable; {_SHAPES}")
    try:
        named, _ = parameters(function)
    except (TypeError, ValueError) as error:
        raise RewardError(f"the parameters of reward {name!r} cannot be read ({error}); {_SHAPES}") from error
    row, batch = "completion" in named, bool(_BATCH_NAMES & (named.keys() - {"completion_ids"}))
    if row and batch:
        raise RewardError(f"reward {name!r} has parameters of both shapes ({', '.join(named)}); {_SHAPES}")
    if row:
        return "row"
    if _BATCH_NAMES & named.keys():
        return "batch"
    raise RewardError(f"reward {name!r} takes ({', '.join(named)}), which is neither shape; {_SHAPES}")


def select_arguments(function: Callable[..., Any], offered: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of the offered names those the function takes, and the names it requires but is not offered."""
    named, takes_all = parameters(function)
    chosen = dict(offered) if takes_all else {name: offered[name] for name in named if name in offered}
    return chosen, [name for name, required in named.items() if required and name not in offered]
