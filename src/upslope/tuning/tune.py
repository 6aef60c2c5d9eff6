"""`upslope.tune`: the settings of a recipe with the highest held-out metric, and what that metric honestly is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

from upslope.errors import RecipeError, UpslopeError
from upslope.recipe import Recipe
from upslope.tasks import Task, task_of
from upslope.tasks.loading import IN_MEMORY
from upslope.tuning.plan import Plan
from upslope.tuning.result import Tuning, conclude
from upslope.tuning.samplers import SAMPLERS
from upslope.tuning.space import Space
from upslope.tuning.trials import Trials
from upslope.tuning.worker import work


def tune(
    recipe: Recipe | str | Path,
    space: str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]],
    *,
    task: Task | None = None,
    folder: str | Path = "runs/tuning",
    trials: int = 20,
    sampler: str = "tree",
    seeds: int = 1,
    workers: int = 1,
    prune: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    error: float = 0.05,
    held_back: float = 1.0 / 3.0,
    seed: int = 0,
    keep_models: bool = False,
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Tuning:
    """Try settings of a recipe by whole runs, and estimate the best on held-out prompts that no trial was judged by.

    recipe: as `train` takes it, with `settings` laid over it. space: what is searched (a TOML file, lines of one, or a
    mapping; see docs/tuning.md). A setting's value is the mean of the task's metric over `seeds` runs and the held-out
    prompts, but for a share `held_back` of these, by which the winner alone is judged, at the end. sampler: "tree",
    "tpe", "gp" or "random". prune: give a trial up once its answers show it to be worse than the best one so far, where
    the metric lies within `bounds`; the best setting is given up with probability `error` at most. workers: processes.
    say takes a line as each trial ends. keep_models: keep the weights of every trial, not those of the best alone.

    Called again on its folder it goes on where it stopped, several at once share the work, and more trials may be asked
    for. Returns what was found, which also stands in the folder: best.toml, result.json, report.md and report.html.

    Raises: RecipeError for a space or settings that cannot be, a folder of another plan, or when every trial failed;
    DataError for too few held-out prompts; DependencyError without Optuna; CheckpointError where the folder cannot be
    written; KeyboardInterrupt after a Ctrl-C, once the run in progress is saved.
    """
    if sampler not in SAMPLERS:
        raise RecipeError(f"there is no sampler {sampler!r}; it is one of {', '.join(SAMPLERS)}")
    given = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    named = {"task.name": IN_MEMORY} if task is not None else {}
    base = Recipe.resolve(given.model_dump(), {**(settings or {}), **named})
    plan = Plan(
        folder=Path(folder),
        recipe=base,
        space=Space.read(space),
        trials=trials,
        seeds=seeds,
        sampler=sampler,
        error=error,
        bounds=bounds if prune else None,
        held_back=held_back,
        seed=seed,
        keep_models=keep_models,
    )
    if workers < 1 or (workers > 1 and task is not None):
        reason = "must be 1 at least" if workers < 1 else "a Task object stays in its process: name package.module:name"
        raise RecipeError(f"workers is {workers}, but {reason}")
    known = task_of(base, task)
    plan.check(known)
    _begin(plan)
    try:
        if workers == 1:
            work(plan, known, say)
        else:
            _work_together(plan, workers, say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on with {plan.folder}") from None
    return conclude(plan, known)


def _begin(plan: Plan) -> None:
    """Make the folder, or see that it holds this very plan."""
    plan.make_folder()
    Trials(plan)  # raises where the folder's trials are of another plan
    plan.save()


def _work_together(plan: Plan, workers: int, say: Callable[[str], None]) -> None:
    """The plan's trials by several processes, which share the processors.

    Raises: UpslopeError with the last words of one that stopped, once the others are done.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    command = [sys.executable, "-m", "upslope.tuning.worker", str(plan.folder)]
    with ExitStack() as stack:
        logs = [stack.enter_context(plan.worker_log(number).open("w+")) for number in range(workers)]
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, errors="replace")
            for log in logs
        ]
        for process in processes:  # interrupted, each saves its run first
            stack.callback(process.wait)
            stack.callback(process.terminate)
        ears = [Thread(target=_repeat, args=(process, say)) for process in processes]
        for ear in ears:
            ear.start()
        for ear in ears:
            ear.join()
        for number, process in enumerate(processes):
            if process.wait():
                raise UpslopeError(f"worker {number} stopped: {_last_words(plan.worker_log(number))}")


def _repeat(process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    """Say what a worker says."""
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip())


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"it left nothing in {log}"
