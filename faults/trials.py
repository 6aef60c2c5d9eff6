"""One injection, one process: with a folder, a seed and a time limit of its own, so that what a fault does to it, to
its limits or to its mounts reaches nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from faults.processes import Child, ended
from faults.runs import STEPS, STOPPED, check_done, start
from faults.verdict import Fault, Injection, Verdict, check

LIMIT_S = 180


@contextmanager
def runs() -> Iterator[tuple[Path, Path, Path]]:
    """(a folder to inject faults in, an uninterrupted run, the same run stopped half-way), gone at the end."""
    with TemporaryDirectory(prefix="upslope-faults-") as root:
        whole, stopped = Path(root) / "whole", Path(root) / "stopped"
        check_done(ended(lambda _: start(whole)))
        end = ended(lambda _: start(stopped, stop_after=STOPPED))
        check(end.how == "interrupted" and 0 < STOPPED < STEPS, f"the run to be stopped {end.how}: {end.message}")
        yield Path(root), whole, stopped


def inject(fault: Fault, cases: Sequence[str], seed: int, places: tuple[Path, Path, Path]) -> Iterator[Verdict]:
    """What comes of injecting each of the cases."""
    root, whole, stopped = places
    for case in cases:
        folder, log = root / "injection", root / "log"
        folder.mkdir()
        rng = random.Random(f"{seed} {fault.name} {case}")
        injection = Injection(case, folder, rng, whole, stopped)
        began = time.monotonic()
        problem = _problem(fault, injection, log)
        yield Verdict(case, time.monotonic() - began, problem)
        if problem is not None:
            sys.stderr.write("".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:])[-4000:])
        shutil.rmtree(folder)


def _problem(fault: Fault, injection: Injection, log: Path) -> str | None:
    child = Child(lambda _: _alone(fault, injection, log))
    end = child.end()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # what it left behind
    if end.how == "done":
        return None
    if end.how == "killed" and str(int(signal.SIGALRM)) in end.message:
        return f"took longer than {LIMIT_S} s"
    return end.message.removeprefix("NotSurvivedError: ")


def _alone(fault: Fault, injection: Injection, log: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT_S)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    fault.inject(injection)
