"""Ctrl-C and SIGTERM: stop at the next moment when nothing would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Raised in the training thread at a moment when no weights are half changed."""


class Interrupts:
    """The first SIGINT or SIGTERM raises Interrupted: at once inside `allowed`, else at the next `check`.

    A second SIGINT raises KeyboardInterrupt. Only the main thread can watch signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._allowed = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt(
                "stopped at once, without saving; `upslope resume` goes on from the last checkpoint"
            )
        already, self.requested = self.requested, True
        if self._allowed and not already:
            raise Interrupted

    def check(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A block that changes no weights and may be left at any moment."""
        self.check()
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False
