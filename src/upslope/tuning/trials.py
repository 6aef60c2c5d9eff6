"""The trials of a study: begun, taken over from the dead, ended; by any number of processes at once."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.errors import CheckpointError, RecipeError
from upslope.report.lock import FolderLock
from upslope.report.run import Run
from upslope.tuning.plan import Plan, difference_of
from upslope.tuning.pruner import Readings
from upslope.tuning.samplers import make_sampler, open_study, reopened, settings_of, stored, suggest, tell

_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting, tried: state is "finished", "pruned", "failed" or "running"; note says why it was not finished."""

    number: int
    state: str
    values: Mapping[str, Any]
    metric: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this process has for itself; taken: it was begun by another that is no more."""

    number: int
    values: Mapping[str, Any]
    taken: bool
    lock: FolderLock


class Trials:
    """The trials of a plan, in its folder.

    Raises: CheckpointError where the study cannot be opened; RecipeError where it holds trials of another plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        with self._alone():
            self._study = open_study(plan.study_path)
            self._identify()

    def claim(self, say: Callable[[str], None]) -> Claim | None:
        """A trial to run: one whose process died, else a new one; None once all have ended.

        While there is none, but other processes still run theirs, it waits (and says so once): should they die, theirs
        are taken over.
        """
        waits = False
        while True:
            with self._alone(), stored(self.plan.study_path):
                running = self._running()
                for number in running:
                    if lock := self._locked(number):
                        if number in self._running():  # it may have ended, and been let go, in between
                            return self._claimed(reopened(self._study, number), lock, taken=True)
                        lock.release()
                if len(self._study.get_trials(deepcopy=False)) < self.plan.trials:
                    trial = self._study.ask()
                    lock = self._locked(trial.number)
                    assert lock is not None, "a new trial is nobody's"
                    return self._claimed(trial, lock, taken=False)
            if not running:
                return None
            if not waits:
                waits = True
                say(f"waiting for {self._held(running)}; where that is gone from another host, delete its lock")
            time.sleep(_POLL_S)

    def finish(self, claim: Claim, metric: float) -> None:
        """The trial ended, with the mean of its metric."""
        self._tell(claim, "COMPLETE", metric)

    def prune(self, claim: Claim, metric: float, note: str) -> None:
        """The trial is given up, at this mean of its metric."""
        with stored(self.plan.study_path):
            reopened(self._study, claim.number).report(metric, 0)
        self._tell(claim, "PRUNED", None, note)

    def fail(self, claim: Claim, problem: str) -> None:
        """The trial could not be run."""
        self._tell(claim, "FAIL", None, problem)

    def all(self) -> list[Trial]:
        """Every trial, in order."""
        states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        with stored(self.plan.study_path):
            kept = self._study.get_trials(deepcopy=False)
        return [
            Trial(
                trial.number,
                states.get(trial.state.name, "running"),
                settings_of(self.plan.space, trial.params),
                trial.value if trial.state.name == "COMPLETE" else next(iter(trial.intermediate_values.values()), None),
                trial.user_attrs.get("note", ""),
            )
            for trial in kept
        ]

    def incumbent(self) -> Trial | None:
        """The finished trial with the highest mean, the earliest of equal ones; None before the first."""
        finished = [trial for trial in self.all() if trial.state == "finished"]
        return max(finished, key=lambda trial: (trial.metric, -trial.number), default=None)

    def readings(self, number: int) -> list[Readings]:
        """The metric of a trial's runs so far, by seed, step and prompt."""
        folders = [self.plan.run_path(number, seed) for seed in range(self.plan.seeds)]
        return [readings(folder) for folder in folders if (folder / "recipe.toml").is_file()]

    @property
    def planned(self) -> int:
        """How many trials were asked for when the first began: more may be asked for later."""
        return int(self._study.user_attrs["planned"])

    @property
    def study(self) -> Any:
        """The study as Optuna has it."""
        return self._study

    def _claimed(self, trial: Any, lock: FolderLock, *, taken: bool) -> Claim:
        plan = self.plan
        self._study.sampler = make_sampler(
            plan.sampler, plan.space, seed=(plan.seed + 1_000_003 * trial.number) % 2**32
        )
        return Claim(trial.number, plan.space.values(lambda parameter: suggest(trial, parameter)), taken, lock)

    def _running(self) -> list[int]:
        """The trials that have not ended."""
        return [trial.number for trial in self._study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]

    def _held(self, running: Sequence[int]) -> str:
        """Who has which trial."""
        holders = ((number, FolderLock(self.plan.trial_path(number) / "lock").holder()) for number in running)
        return ", ".join(f"trial {number} of process {by.pid} on {by.host}" for number, by in holders if by is not None)

    def _locked(self, number: int) -> FolderLock | None:
        """The lock of a trial's folder, now this process's; None where a living process has it."""
        folder = self.plan.trial_path(number)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {folder}: {error.strerror}; make room or make it writable") from error
        lock = FolderLock(folder / "lock")
        if lock.holder() is not None:
            return None
        lock.acquire()
        return lock

    def _tell(self, claim: Claim, state: str, metric: float | None, note: str = "") -> None:
        with stored(self.plan.study_path):
            if note:
                reopened(self._study, claim.number).set_user_attr("note", note)
            tell(self._study, claim.number, state, metric)
        if not self.plan.keep_models:
            self._tidy()

    def _tidy(self) -> None:
        """Of every ended trial but the best, the weights are deleted; logs and recipes stay."""
        best = self.incumbent()
        for trial in self.all():
            if trial.state != "running" and (best is None or trial.number != best.number):
                for seed in range(self.plan.seeds):
                    for name in ("model", "checkpoints"):
                        shutil.rmtree(self.plan.run_path(trial.number, seed) / name, ignore_errors=True)

    def _identify(self) -> None:
        asked = self.plan.identity()
        kept = self._study.user_attrs.get("identity")
        if kept is None:
            with stored(self.plan.study_path):
                self._study.set_user_attr("identity", asked)
                self._study.set_user_attr("planned", self.plan.trials)
        elif kept != asked and (found := difference_of(kept, asked)):
            raise RecipeError(f"{self.plan.folder} holds the trials of another plan: {found}; name another folder")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time, on whatever host shares the folder."""
        path = self.plan.folder / ".claiming"
        try:
            file = path.open("a")
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}; make the folder writable") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def readings(folder: Path) -> Readings:
    """The metric of a run at every step at which it was evaluated, by prompt."""
    return {event["step"]: event["values"] for event in Run.open(folder).events("evaluate")}


def final(folder: Path) -> Mapping[str, float] | None:
    """The metric of the model that a run ended with, by prompt; None where it has not ended."""
    if not (folder / "recipe.toml").is_file():
        return None
    steps = [event["model_step"] for event in Run.open(folder).events("finished")]
    return readings(folder)[steps[-1]] if steps else None


def numbered(prompts: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Clusters of prompts as the names under which runs log them."""
    return [[str(prompt.id) for prompt in group] for group in prompts]
