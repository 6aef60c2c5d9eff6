"""Where the time goes: named spans of code, summed up while a stopwatch runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_running: ContextVar[dict[str, float] | None] = ContextVar("running", default=None)


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Within the context, this thread's spans add their seconds to the yielded dict, by name.

    An inner stopwatch keeps its own.
    """
    seconds: dict[str, float] = {}
    token = _running.set(seconds)
    try:
        yield seconds
    finally:
        _running.reset(token)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Charge the time within to `name`, less that of spans inside, which are charged to their own names."""
    seconds = _running.get()
    if seconds is None:
        yield
        return
    inside = sum(seconds.values())
    started = time.perf_counter()
    try:
        yield
    finally:
        elapsed = time.perf_counter() - started
        seconds[name] = seconds.get(name, 0.0) + elapsed - (sum(seconds.values()) - inside)
