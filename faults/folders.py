"""Run folders that are read-only, missing, or locked by a process that is no more."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from faults.disks import Gate
from faults.hooks import before, nth
from faults.processes import Child, ended
from faults.runs import (
    STEPS,
    check_bitwise,
    check_done,
    check_intact,
    check_refused,
    check_resumes,
    copied,
    resumed,
    start,
)
from faults.verdict import Injection, check
from upslope.policies.causal import CausalPolicy
from upslope.report.lock import Owner
from upslope.report.run import Run
from upslope.training import session


def read_only(injection: Injection) -> None:
    """A folder that cannot be written: an error that names it, and nothing lost."""
    folder, step = injection.folder / "run", injection.rng.randint(2, STEPS - 1)
    inner = {"a new run": injection.folder, "the checkpoints of a running one": folder / "checkpoints"}
    gate = Gate(inner.get(injection.case, folder))
    if injection.case == "a new run":
        gate.close()
        check_refused(ended(lambda _: start(folder)), "CheckpointError", str(folder))
        gate.open()
        check(not folder.exists(), "a folder was made")
        check_done(ended(lambda _: start(folder)))
        return check_bitwise(folder, injection.whole)
    if injection.case == "a resumed run":
        copied(injection.stopped, folder)
        gate.close()
        check_refused(resumed(folder), "CheckpointError", f"{folder}/lock")
    elif injection.case == "the checkpoints of a running one":
        end = ended(lambda _: _start_and(folder, session, "save_checkpoint", step, gate.close))
        check_refused(end, "CheckpointError", str(gate.path))
    else:
        end = ended(lambda _: _start_and(folder, CausalPolicy, "save", 1, gate.close))
        check_refused(end, "CheckpointError", str(folder / "model"))
    gate.open()
    return check_resumes(folder, injection.whole)


def missing(injection: Injection) -> None:
    """What a run needs is not there, or is taken away while it runs."""
    folder, step = injection.folder / "run", injection.rng.randint(2, STEPS - 1)
    if injection.case == "the run folder":
        check_refused(resumed(folder), "CheckpointError", str(folder), "no run folder")
        check(not folder.exists(), "a folder was made")
    elif injection.case == "recipe.toml":
        (copied(injection.stopped, folder) / "recipe.toml").rename(injection.folder / "away")
        check_refused(resumed(folder), "CheckpointError", "holds no recipe.toml")
        (injection.folder / "away").rename(folder / "recipe.toml")
        check_resumes(folder, injection.whole)
    elif injection.case == "the run folder, while it runs":
        away = injection.folder / "away"
        end = ended(lambda _: _start_and(folder, session, "save_checkpoint", step, lambda: folder.rename(away)))
        check_refused(end, "CheckpointError", str(folder))
        check(not folder.exists(), "the folder was made anew, without what it held")
        away.rename(folder)
        check_intact(folder, steps=(step - 1,))
        check_resumes(folder, injection.whole)
    else:
        gone = folder / "checkpoints"
        end = ended(lambda _: _start_and(folder, session, "save_checkpoint", step, lambda: shutil.rmtree(gone)))
        check_done(end)
        check_bitwise(folder, injection.whole)


def stale_lock(injection: Injection) -> None:
    """A lock whose process is gone is swept and said; that of a living one is respected."""
    folder = copied(injection.stopped, injection.folder / "run")
    if injection.case == "a living writer":
        return _living_writer(injection)
    if injection.case == "killed":
        child = Child(lambda say: _hold(folder, say))
        child.line()
        child.send(signal.SIGKILL)
        child.end()
    elif injection.case == "another process has its number":
        owner = Owner.current()
        (folder / "lock").write_text(json.dumps(asdict(replace(owner, started=owner.started - 1))))
    else:
        (folder / "lock").write_text(json.dumps(asdict(Owner.current()))[: injection.rng.randrange(30)])
    check_resumes(folder, injection.whole)
    said = len(list(Run.open(folder).events("stale_lock")))
    check(said == (injection.case != "torn"), f"{said} stale locks are said in the log")
    return check(not (folder / "lock").exists(), "the lock is left behind")


def _living_writer(injection: Injection) -> None:
    """A second process is refused by name, and the first one, which it found at work, ends as if alone."""
    folder = injection.folder / "running"
    child = Child(lambda say: _start_and(folder, session, "save_checkpoint", 2, lambda: say("saving")))
    child.line()
    check_refused(resumed(folder), "CheckpointError", f"is being written by process {child.pid}")
    end = child.end()
    check_done(end)
    check_bitwise(folder, injection.whole)


def _hold(folder: Path, say: Callable[[str], None]) -> None:
    with Run.open(folder):
        say("held")
        signal.pause()


def _start_and(folder: Path, owner: object, name: str, call: int, act: Callable[[], object]) -> None:
    """Train, and act right before the call-th call of a function."""
    before(owner, name, act, when=nth(call))
    start(folder)
