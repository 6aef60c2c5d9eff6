"""A sandbox: programs that nobody trusts in, verdicts of their tests out."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import sysconfig
import time
from collections.abc import Sequence
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Any

from upslope.errors import RewardError
from upslope.rewards.sandbox import streams
from upslope.rewards.sandbox.client import Forker

_GRACE_S = 0.5  # past a program's time, which its tests' process keeps itself
_TIMED_OUT = "timed out"


@dataclasses.dataclass(frozen=True)
class Case:
    """What a program reads from standard input, and what it must write to standard output."""

    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """passed of total tests, and why the first that failed did: one sentence, empty where none did."""

    passed: int
    total: int
    why: str = ""


class Sandbox:
    """Runs Python programs that nobody trusts, and says which of their tests they pass.

    timeout_s: seconds on the clock for a program and its tests, or for one case; and, one more, its seconds of CPU.
    memory_mib: MiB of address space, the interpreter's own 40 or so included. output_kib: KiB that it may print in one
    case, or answer to one question. packages: whether it may import what is installed beside upslope, and not Python's
    own modules alone. A program can write no file, start no process and no thread, and open no socket.

    Raises: RewardError where a limit is none, or naming what this machine lacks. Nothing weaker is used in its place.
    """

    def __init__(
        self, *, timeout_s: float = 2.0, memory_mib: float = 512, output_kib: float = 1024, packages: bool = False
    ) -> None:
        self._limits = {"timeout_s": timeout_s, "memory_mib": memory_mib, "output_kib": output_kib}
        for name, limit in self._limits.items():
            if not 0 < limit < float("inf"):
                raise RewardError(f"the sandbox's {name} is {limit!r}; it must be a number above 0")
        if lacks := _missing():
            raise RewardError(f"the sandbox needs {lacks}, which this machine lacks; judge programs on one that has it")
        self._packages = [sysconfig.get_path(name) for name in ("purelib", "platlib")] if packages else []
        self._again = partial(Sandbox, **self._limits, packages=packages)
        self._lock = Lock()
        self._slots = BoundedSemaphore(len(os.sched_getaffinity(0)))
        self._forker = Forker(self._limits, self._packages)
        self.close()  # it has shown that it can be; whoever only sends the sandbox on needs no process

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again, ()

    def close(self) -> None:
        """Ends its processes. The next run starts new ones."""
        self._forker.stop()

    def run(
        self,
        program: str,
        tests: str | Sequence[str | Case],
        *,
        entry_point: str | None = None,
        every: bool = False,
    ) -> Verdict:
        """What the program's tests say of it, in a process of their own and by their own comparisons. From any thread,
        as many at a time as there are cores.

        tests: a module (its asserts, or its functions check(candidate) and test_*), a list of asserts, or cases.
        entry_point: what `candidate` stands for. every: go on after a test that failed.

        Raises: RewardError where the tests cannot be run, whatever the program, or where the sandbox fails.
        """
        listed = [tests] if isinstance(tests, str) else list(tests)
        cases = [test for test in listed if isinstance(test, Case)]
        asserts = [test for test in listed if isinstance(test, str)]
        if not listed or len(listed) not in (len(cases), len(asserts)):
            raise RewardError("there are no tests, or cases are mixed with asserts")
        with self._slots:
            if cases:
                return self._run_cases(program, cases, every)
            return self._run_tests(program, asserts, entry_point, every)

    def _run_tests(self, program: str, sources: list[str], entry_point: str | None, every: bool) -> Verdict:
        """The program in one process and its tests in another, with a socket between them."""
        timeout_s, forker = self._limits["timeout_s"], self._living()
        asks, answers = socket.socketpair()
        with (
            asks,
            answers,
            forker.confined("program", answers.fileno()) as run,
            forker.confined("tests", asks.fileno()) as judge,
        ):
            asks.close()
            answers.close()
            deadline = time.monotonic() + timeout_s + _GRACE_S
            request = {"tests": sources, "entry_point": entry_point, "every": every, "timeout_s": timeout_s}
            try:
                run.channel.send(program, deadline)
                judge.channel.send(request, deadline)
                answer = judge.channel.receive(deadline)
            except TimeoutError:
                raise RewardError(f"the tests take more than {timeout_s:g} s of their own") from None
            except (EOFError, OSError, ValueError):
                raise RewardError(f"the tests {_death(judge.end())}") from None
        if "broken" in answer:
            raise RewardError(f"the tests are broken: {answer['broken']}")
        return Verdict(**answer)

    def _run_cases(self, program: str, cases: list[Case], every: bool) -> Verdict:
        """A process a case. After a case that ran out of time there is no other: it would be waited for as well."""
        if not any(case.output.strip() for case in cases):
            raise RewardError("the tests are broken: no case wants any output, so a program that does nothing passes")
        passed, why = 0, ""
        for case in cases:
            reason = self._failure(program, case)
            passed += not reason
            why = why or reason
            if reason and (not every or reason == _TIMED_OUT):
                break
        return Verdict(passed, len(cases), why)

    def _failure(self, program: str, case: Case) -> str:
        """Why the program failed the case; empty where it did not. Its exit status can fail it, but pass it never."""
        limit = int(self._limits["output_kib"] * 1024)
        with streams.pipes() as (ours, theirs), self._living().confined("script", *theirs) as run:
            streams.close(theirs)
            deadline = time.monotonic() + self._limits["timeout_s"]
            try:
                run.channel.send(program, deadline)
                output, errors = streams.exchange(ours, case.input.encode(), limit=limit, deadline=deadline)
            except TimeoutError:
                return _TIMED_OUT
            except streams.TooMuchError:
                return f"printed more than {limit} bytes"
            except OSError:
                output, errors = b"", b""
            if status := run.end():
                last = errors.decode(errors="replace").strip().rpartition("\n")[2]
                return f"{_death(status)}: {last[:300]}".strip(": ")
        printed = output.decode(errors="replace")
        if _lines(printed) != _lines(case.output):
            return f"printed {printed.strip()[:200]!r} for the input {case.input.strip()[:200]!r}"
        return ""

    def _living(self) -> Forker:
        """The forker, a new one where it was closed or has died."""
        with self._lock:
            if not self._forker.alive():
                self._forker = Forker(self._limits, self._packages)
            return self._forker


def _missing() -> str | None:
    if sys.platform != "linux":
        return "Linux"
    from upslope.rewards.sandbox.confinement import missing  # what it imports is not on every system

    return missing()


def _lines(text: str) -> list[str]:
    """The lines without blank space at their ends, and without blank lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _death(status: int) -> str:
    return f"died of signal {-status}" if status < 0 else f"ended with status {status}"
