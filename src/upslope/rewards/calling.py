"""Runs one reward function over its calls and turns what it does, whatever that is, into plain outcomes.

The same code runs inside the worker process and, with `isolation="none"`, in the trainer's own. Imports no torch.
"""

from __future__ import annotations

import asyncio
import inspect
import numbers
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

Value: TypeAlias = float | list[float] | None


@dataclass(frozen=True)
class Call:
    """One call of a reward function: its keyword arguments, and for a batch function the number of rows in it."""

    arguments: dict[str, Any]
    num_rows: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What one row got: a value (a score, one reward an action, or None for "does not apply"), or a failure."""

    value: Value = None
    failure: str | None = None
    detail: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


Finished: TypeAlias = tuple[int, list[Outcome]]


class _Log:
    """TRL's log_metric(name, value) and log_extra(column, values) of one batch call; numbers become row metrics."""

    def __init__(self, num_rows: int) -> None:
        self.metrics: list[dict[str, float]] = [{} for _ in range(num_rows)]

    def log_metric(self, name: str, value: Any) -> None:
        for metrics in self.metrics:
            metrics[str(name)] = _number(value)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        for metrics, value in zip(self.metrics, values, strict=False):
            if isinstance(value, numbers.Real):
                metrics[str(column)] = _number(value)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling the function gives a coroutine (partials and objects with an async `__call__` included)."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def run_calls(function: Callable[..., Any], calls: Sequence[Call], *, timeout_s: float) -> Iterator[Finished]:
    """(index of a call, outcomes of its rows), as they finish; coroutines run together, all else in order.

    timeout_s [seconds] bounds each coroutine; what bounds a blocking call is the process around it.
    """
    if is_async(function):
        yield from _run_together(function, calls, timeout_s)
        return
    for index, call in enumerate(calls):
        arguments, log = _with_log(call)
        try:
            result = function(**arguments)
        except (Exception, SystemExit) as error:
            yield index, _spread(call, _raised(error))
        else:
            yield index, _outcomes(result, call, log)


def timed_out(timeout_s: float) -> Outcome:
    """The outcome of a row whose function took longer than timeout_s [seconds]."""
    return Outcome(failure=f"timed out after {timeout_s:g} s")


def read_value(value: Any) -> Outcome:
    """A returned number, sequence of numbers or None as plain floats; anything else is a failure."""
    if hasattr(value, "tolist"):  # a torch or numpy scalar or array
        value = value.tolist()
    if value is None:
        return Outcome()
    is_list = isinstance(value, list | tuple)
    items = [item.tolist() if hasattr(item, "tolist") else item for item in (value if is_list else [value])]
    strangers = [type(item).__name__ for item in items if not isinstance(item, numbers.Real)]
    if strangers:
        return Outcome(failure=f"returned {'a list with ' if is_list else ''}{strangers[0]}")
    return Outcome([_number(item) for item in items] if is_list else _number(items[0]))


def _outcomes(result: Any, call: Call, log: _Log) -> list[Outcome]:
    if call.num_rows is None:
        return [read_value(result)]
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        return _spread(call, Outcome(failure=f"returned {type(result).__name__} for a batch"))
    if len(values) != call.num_rows:
        detail = f"{len(values)} values for {call.num_rows} rows"
        return _spread(call, Outcome(failure="returned a list of the wrong length", detail=detail))
    return [replace(read_value(value), metrics=metrics) for value, metrics in zip(values, log.metrics, strict=True)]


def _spread(call: Call, outcome: Outcome) -> list[Outcome]:
    return [outcome] * (call.num_rows or 1)


def _with_log(call: Call) -> tuple[dict[str, Any], _Log]:
    log = _Log(call.num_rows or 1)
    methods = {"log_metric": log.log_metric, "log_extra": log.log_extra}
    declared = {name: method for name, method in methods.items() if call.num_rows and name in call.arguments}
    return call.arguments | declared, log


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return float("inf") if value > 0 else float("-inf")


def _raised(error: BaseException) -> Outcome:
    detail = "".join(traceback.format_exception(error))[-4000:]
    return Outcome(failure=f"raised {type(error).__name__}", detail=detail)


def _run_together(function: Callable[..., Any], calls: Sequence[Call], timeout_s: float) -> Iterator[Finished]:
    """Coroutines in a loop of their own thread (the caller may itself sit inside a running loop)."""
    finished: SimpleQueue[Finished] = SimpleQueue()

    async def one(index: int, call: Call) -> None:
        finished.put((index, await _await_call(function, call, timeout_s)))

    async def together() -> None:
        await asyncio.gather(*(one(index, call) for index, call in enumerate(calls)))

    thread = Thread(target=lambda: asyncio.run(together()))
    thread.start()
    for _ in calls:
        yield finished.get()
    thread.join()


async def _await_call(function: Callable[..., Any], call: Call, timeout_s: float) -> list[Outcome]:
    arguments, log = _with_log(call)

    async def guarded() -> list[Outcome]:
        try:
            return _outcomes(await function(**arguments), call, log)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit in a task would end the whole loop
            return _spread(call, _raised(error))

    task = asyncio.ensure_future(guarded())
    done, _ = await asyncio.wait([task], timeout=timeout_s)
    if not done:
        task.cancel()
        return _spread(call, timed_out(timeout_s))
    return _spread(call, Outcome(failure="raised CancelledError")) if task.cancelled() else task.result()
