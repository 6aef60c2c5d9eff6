"""kill -9 and signals at real runs: while saving, at random moments, and in every phase of a step."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import time
from pathlib import Path

from faults.hooks import before, nth
from faults.processes import Child, Say
from faults.runs import STEPS, UPDATES_PER_STEP, check_intact, check_resumes, start
from faults.verdict import Injection, NotSurvivedError, check
from upslope.engines.local import LocalEngine
from upslope.report.run import Run
from upslope.rewards import Scorer
from upslope.training import policy_gradient, session

PHASES = {
    "rollout": (LocalEngine, "sample"),
    "reward": (Scorer, "score"),
    "optimiser": (policy_gradient, "update"),
    "save": (session, "save_checkpoint"),
}
_TRIES = 30  # a kill may come before or after what it is meant to hit; then it is done again
_SOON_S = 10.0


def kill_while_saving(injection: Injection) -> None:
    """kill -9 between the first byte of a checkpoint and the last: a temporary folder must be there to show for it."""
    saves = [event["save_s"] for event in Run.open(injection.whole).events("checkpoint")]
    for attempt in range(_TRIES):
        folder = injection.folder / f"run-{attempt}"
        if step := _killed_in_a_save(injection, folder, statistics.median(saves)):
            break
    else:
        raise NotSurvivedError(f"not injected: none of {_TRIES} runs could be killed within a save")
    check_intact(folder, steps=(step - 1, step))
    check_resumes(folder, injection.whole)


def _killed_in_a_save(injection: Injection, folder: Path, save_s: float) -> int | None:
    """Kill a run within a save from a random step on; that step, or None where the run was always faster. It is stopped
    at a random moment of the save, looked at, and killed where it stands, or let on to its next save."""
    first = injection.rng.randint(2, STEPS)  # an intact checkpoint lies before it
    child = Child(lambda say: _start_saying_saves(say, folder))
    while saving := child.line():
        if saving.isdigit() and int(saving) >= first:
            time.sleep(injection.rng.uniform(0.0, save_s))
            child.send(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if list(folder.glob("checkpoints/.tmp-*")):
                child.send(signal.SIGKILL)
                child.end()
                return int(saving)
            child.send(signal.SIGCONT)
    child.end()
    return None


def _start_saying_saves(say: Say, folder: Path) -> None:
    """Train, and say before each save which step it is of."""
    saves = itertools.count(1)
    before(*PHASES["save"], lambda: say(str(next(saves))), when=lambda *_, **__: True)
    start(folder)


def kill_at_random(injection: Injection) -> None:
    """kill -9 at any moment between the first line of the run folder and the last."""
    times = [event["time"] for event in Run.open(injection.whole).events()]
    for attempt in range(_TRIES):
        folder = injection.folder / f"run-{attempt}"
        child = Child(lambda _, folder=folder: start(folder))
        while not (folder / "recipe.toml").exists():
            time.sleep(0.001)
        time.sleep(injection.rng.uniform(0.0, max(times) - min(times)))
        child.send(signal.SIGKILL)
        if child.end().how == "killed":
            break
    else:
        raise NotSurvivedError(f"not injected: all of {_TRIES} runs were faster than their kill")
    check_resumes(folder, injection.whole)


def terminate(injection: Injection) -> None:
    """SIGTERM in one phase of one step: saved within one step and ten seconds."""
    phase, _, step = injection.case.partition(" ")
    folder = injection.folder / "run"
    call = _call(injection, phase, int(step))
    child = Child(lambda say: _start_saying(say, folder, phase, call, stop=True))
    child.line()
    end = child.end()
    check(end.how == "interrupted", f"the run {end.how}: {end.message}")
    check(end.seconds < _SOON_S, f"it took {end.seconds:.1f} s to save")
    check_intact(folder, steps=(int(step) - 1, int(step)))
    check_resumes(folder, injection.whole)


def interrupt_twice(injection: Injection) -> None:
    """Ctrl-C and, impatiently, Ctrl-C again: it ends soon, and nothing that was saved is lost."""
    folder, step = injection.folder / "run", injection.rng.randint(2, STEPS - 1)
    call = _call(injection, injection.case, step)
    child = Child(lambda say: _start_saying(say, folder, injection.case, call))
    child.line()
    child.send(signal.SIGINT)
    time.sleep(injection.rng.uniform(0.0, 0.02))
    child.send(signal.SIGINT)
    end = child.end()
    check(end.how == "interrupted", f"the run {end.how}: {end.message}")
    check(end.seconds < _SOON_S, f"it took {end.seconds:.1f} s to end")
    check_intact(folder, steps=(step - 1, step))
    check_resumes(folder, injection.whole)


def _start_saying(say: Say, folder: Path, phase: str, call: int, *, stop: bool = False) -> None:
    """Train, and say so right before the call-th call of a phase; with stop, then get SIGTERM."""

    def act() -> None:
        say(phase)
        if stop:
            os.kill(os.getpid(), signal.SIGTERM)

    before(*PHASES[phase], act, when=nth(call))
    start(folder)


def _call(injection: Injection, phase: str, step: int) -> int:
    """Which call of the phase's function lies in the step."""
    return (step - 1) * UPDATES_PER_STEP + injection.rng.randint(1, UPDATES_PER_STEP) if phase == "optimiser" else step
