"""The trainer's end of a reward worker: starts it, asks it, and replaces it when it hangs or dies."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from upslope.errors import RewardError
from upslope.rewards.calling import Call, Outcome, is_async, timed_out
from upslope.rewards.terms import RewardTerm
from upslope.rewards.worker import receive_frame, send_frame

START_TIMEOUT_S = 120.0
"""Seconds a worker may take to import what the functions need; not counted against a row's own limit."""

_GRACE_S = 1.0  # past the limit of a coroutine, which the worker enforces itself
_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[3]); from upslope.rewards.worker import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)


class _LostError(Exception):
    """The worker died or hung; the reason becomes the failure of the row it was at."""


class WorkerProcess:
    """A process of its own session that runs reward functions; restarted as often as they break it."""

    def __init__(self, terms: Sequence[RewardTerm], *, timeout_s: float, memory_bytes: int | None) -> None:
        functions = [(term.name, _pickle(term)) for term in terms]
        self._terms = terms
        self._setup = pickle.dumps({"functions": functions, "memory_bytes": memory_bytes})
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._kill: weakref.finalize[..., Any] | None = None

    def start(self) -> None:
        """Starts the worker and rebuilds the functions in it.

        Raises: RewardError naming the function that could not be rebuilt there.
        """
        self.stop()
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps([path or str(Path.cwd()) for path in sys.path])]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=2,  # prints of a reward function must not mix with the program's own output
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours
        self._kill = weakref.finalize(self, _kill, self._process, ours)
        try:
            self._send(self._setup)
            answer = self._receive(START_TIMEOUT_S)
        except _LostError as lost:
            self.stop()
            raise RewardError(f"the reward worker did not start: it {lost}; try isolation='none'") from None
        if "broken" in answer:
            self.stop()
            raise RewardError(
                f"reward {answer['broken']!r} cannot be rebuilt in the worker process ({answer.get('cause')}); "
                "make its module importable from the current directory, or set isolation='none'"
            )

    def stop(self) -> None:
        """Kills the worker and everything it started."""
        if self._kill is not None:
            self._kill()
        self._process = self._socket = self._kill = None

    def run(self, term: int, calls: Sequence[Call]) -> list[list[Outcome]]:
        """Outcomes of the rows of each call, whatever the function does."""
        outcomes: list[list[Outcome] | None] = [None] * len(calls)
        while pending := [index for index, outcome in enumerate(outcomes) if outcome is None]:
            try:
                self._exchange(term, calls, pending, outcomes)
            except _LostError as lost:
                self.stop()
                unfinished = [index for index in pending if outcomes[index] is None]
                together = is_async(self._terms[term].function)
                for index in unfinished if together else unfinished[:1]:
                    outcomes[index] = [Outcome(failure=str(lost))] * (calls[index].num_rows or 1)
            except BaseException:
                self.stop()
                raise
        return [outcome for outcome in outcomes if outcome is not None]

    def _exchange(
        self, term: int, calls: Sequence[Call], pending: Sequence[int], outcomes: list[list[Outcome] | None]
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            self.start()
        asked = [calls[index] for index in pending]
        self._send(_pickle_request(self._terms[term].name, term, asked, self._timeout_s))
        together = is_async(self._terms[term].function)
        deadline = time.monotonic() + self._timeout_s + _GRACE_S
        for _ in pending:
            left = deadline - time.monotonic() if together else self._timeout_s
            answer = self._receive(left)
            index, rows = _read_answer(answer, asked)
            outcomes[pending[index]] = rows

    def _send(self, payload: bytes) -> None:
        assert self._socket is not None
        self._socket.settimeout(START_TIMEOUT_S)
        try:
            send_frame(self._socket, payload)
        except OSError:
            raise _LostError(self._death()) from None

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. A fork of the worker can hold its socket open, so its death is looked for as well."""
        assert self._socket is not None
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while True:
            dead = self._process.poll() is not None
            wait_s = 0.0 if dead else max(0.0, min(0.05, deadline - time.monotonic()))
            if poll.poll(1000 * wait_s):
                break
            if dead:
                raise _LostError(self._death())
            if time.monotonic() >= deadline:
                raise _LostError(timed_out(self._timeout_s).failure)
        self._socket.settimeout(START_TIMEOUT_S)
        try:
            frame = receive_frame(self._socket)
            answer = None if frame is None else json.loads(frame)
        except (OSError, ValueError):
            answer = None
        if not isinstance(answer, dict):
            raise _LostError(self._death())
        return answer

    def _death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "broke its connection"
        return f"was killed by signal {-code}" if code < 0 else f"ended its process with exit code {code}"


def _kill(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _pickle(term: RewardTerm) -> bytes:
    try:
        return bytes(cloudpickle.dumps(term.function))
    except Exception as error:
        raise RewardError(
            f"reward {term.name!r} cannot be sent to the worker process ({type(error).__name__}: {error}); "
            "build what it holds inside the function, or set isolation='none'"
        ) from error


def _pickle_request(name: str, term: int, calls: Sequence[Call], timeout_s: float) -> bytes:
    try:
        return bytes(cloudpickle.dumps({"term": term, "calls": list(calls), "timeout_s": timeout_s}))
    except Exception as error:
        raise RewardError(
            f"the data columns of reward {name!r} cannot be sent to the worker process "
            f"({type(error).__name__}: {error}); keep plain values in them, or set isolation='none'"
        ) from error


def _read_answer(answer: dict[str, Any], asked: Sequence[Call]) -> tuple[int, list[Outcome]]:
    """Checks an answer, since code that we do not trust may have written it."""
    try:
        call = asked[answer["call"]]
        outcomes = [Outcome(**outcome) for outcome in answer["outcomes"]]
        valid = len(outcomes) == (call.num_rows or 1)
    except (KeyError, IndexError, TypeError):
        valid = False
    if not valid:
        raise _LostError("broke its connection")
    return answer["call"], outcomes
