"""What the benchmarks share: sides that run in turn, each in a process and an environment of its own.

A side is a function `side(turn, **options)` of a benchmark script, which calls `turn()` between repetitions. All sides
of a workload are started and warmed up, then take turns (A B A B), so that whatever slows the machine slows both; the
side that waits blocks on a pipe. Imports the standard library only: scripts are read in the peers' environments too.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
GIB = 2**30
PEERS = Path(os.environ.get("PEERS") or FOLDER.parent / ".venv-peers")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a function of a script, its options, and the peer's environment it needs, if any.

    most_repeats bounds the repetitions of a side that takes minutes.
    """

    name: str
    script: str
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    most_repeats: int | None = None


@dataclass
class Measured:
    """What a side's repetitions gave: their answers, the versions of its environment, or why it could not run."""

    side: Side
    answers: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    @property
    def seconds(self) -> list[float]:
        """Seconds of each repetition."""
        return [answer["seconds"] for answer in self.answers]

    @property
    def peak_bytes(self) -> int | None:
        """The most memory the side's process ever held."""
        return max((answer["peak_bytes"] for answer in self.answers), default=None)

    def values(self, unit: str) -> list[float]:
        """Each repetition in the unit: seconds, or tokens/s where the unit says so."""
        if unit == "tokens/s":
            return [answer["tokens"] / answer["seconds"] for answer in self.answers]
        return self.seconds


class SideFailedError(RuntimeError):
    """A side's process ended, or took longer than it may."""


class Worker:
    """The process of one side. `repeat` has it do one repetition."""

    def __init__(self, side: Side, interpreter: Path, *, timeout_s: float) -> None:
        self.side, self._timeout_s = side, timeout_s
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in stop
        command = [interpreter, FOLDER / "worker.py", side.script, side.function, json.dumps(dict(side.options))]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        try:
            self.ready = self._answer()
        except SideFailedError:
            self.stop()
            raise

    def repeat(self) -> dict[str, Any]:
        """One repetition: its seconds, counts and memory. Raises: SideFailedError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go\n")
        except BrokenPipeError:
            raise SideFailedError(self._last_words()) from None
        return self._answer()

    def stop(self) -> None:
        """End the process and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], self._timeout_s)[0]:
            raise SideFailedError(f"took longer than {self._timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            self._process.wait()
            raise SideFailedError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"failed: {lines[-1] if lines else f'exit status {self._process.poll()}'}"


def interpreter(side: Side, peers: Path) -> Path:
    """The Python that runs a side. Raises: SideFailedError when the peer's environment is not there."""
    if side.environment is None:
        return Path(sys.executable)
    found = peers / side.environment / "bin" / "python"
    if not found.exists():
        raise SideFailedError("not installed: make bench-peers")
    return found


def measure(
    sides: Sequence[Side], *, repeats: int, peers: Path, warmups: int = 1, timeout_s: float = 1200.0
) -> list[Measured]:
    """Repetitions of all sides, in turn; a side that fails is left out from there on and says why."""
    measured = [Measured(side) for side in sides]
    workers: dict[str, Worker] = {}
    try:
        for result in measured:
            print(f"  {result.side.name}: loading and warming up", file=sys.stderr, flush=True)
            with _problems_kept(result, workers):
                worker = Worker(result.side, interpreter(result.side, peers), timeout_s=timeout_s)
                workers[result.side.name] = worker
                result.versions = worker.ready["versions"]
                for _ in range(warmups):
                    worker.repeat()
        for repetition in range(repeats):
            for result in measured:
                if result.side.name in workers and repetition < (result.side.most_repeats or repeats):
                    with _problems_kept(result, workers):
                        result.answers.append(workers[result.side.name].repeat())
                        print(f"  {result.side.name}: {result.seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.stop()
    return measured


@contextmanager
def _problems_kept(result: Measured, workers: dict[str, Worker]) -> Iterator[None]:
    """A side's failure becomes its problem, and its process ends."""
    try:
        yield
    except SideFailedError as error:
        result.problem = str(error)
        print(f"  {result.side.name}: {error}", file=sys.stderr, flush=True)
        if worker := workers.pop(result.side.name, None):
            worker.stop()


def arguments(doc: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed repetitions of every side")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the environments that make bench-peers made")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="the folder to write NAME.json to")
    return parser
