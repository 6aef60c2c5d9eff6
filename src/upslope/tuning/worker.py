"""One process at work on a plan: it claims trials, trains each setting on every seed, gives up what is shown worse."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import CheckpointError, RecipeError, RewardError, UpslopeError
from upslope.recipe import Recipe
from upslope.report.run import Run
from upslope.tasks import Task, task_of
from upslope.training.launch import launch
from upslope.tuning.plan import Plan, only
from upslope.tuning.pruner import log_evidence, outside, paired_looks, share_of_error
from upslope.tuning.space import written
from upslope.tuning.trials import Claim, Trials, final, numbered, readings


def work(plan: Plan, task: Task, say: Callable[[str], None]) -> None:
    """Run trials until all have ended; several processes may do so at once.

    task: with all its held-out prompts. A trial that raises is counted as failed and named, and tuning goes on; only
    what concerns every trial (a disk, bounds of the metric) is raised.
    """
    trials = Trials(plan)
    groups, _ = plan.prompts(task)
    seen = only(task, groups)
    while (claim := trials.claim(say)) is not None:
        try:
            if claim.taken:
                say(f"trial {claim.number}: its process is gone; going on with it")
            _run(trials, claim, seen, numbered(groups))
        finally:
            claim.lock.release()
        say(_described(trials, claim.number))


def _run(trials: Trials, claim: Claim, task: Task, groups: Sequence[Sequence[str]]) -> None:
    """Every seed of a trial, and what came of it."""
    plan = trials.plan
    try:
        for seed in range(plan.seeds):
            recipe = plan.trial_recipe(claim.values, claim.number, seed)
            _train(recipe, task, Watch(trials, claim, seed, recipe, groups))
        trials.finish(claim, mean_metric(tuned_on(plan, claim.number)))
    except GivenUp as given_up:
        if given_up.error is not None:
            raise given_up.error from None
        trials.prune(claim, given_up.metric, given_up.note)
    except CheckpointError:
        raise
    except Exception as error:
        named = str(error) if isinstance(error, UpslopeError) else f"{type(error).__name__}: {error}"
        trials.fail(claim, named)


def _train(recipe: Recipe, task: Task, watch: Watch) -> None:
    """Begin a run, or go on with one that was begun, unless it has ended."""
    folder = Path(str(recipe.run.folder))
    begun = Run.open(folder) if (folder / "recipe.toml").is_file() else None
    if begun is None or final(folder) is None:
        launch(recipe, task=task, trackers=[watch], resumed=begun)


def tuned_on(plan: Plan, number: int) -> list[Mapping[str, float]]:
    """The metric of the models that a finished trial's seeds ended with, by prompt."""
    finals = [final(plan.run_path(number, seed)) for seed in range(plan.seeds)]
    return [found for found in finals if found is not None]


def common(finals: Sequence[Mapping[str, float]]) -> list[str]:
    """The prompts that could be scored for every seed. Raises: RewardError where there is none."""
    names = sorted(set.intersection(*(set(each) for each in finals)), key=int)
    if not names:
        raise RewardError("no held-out prompt could be scored for every seed")
    return names


def mean_metric(finals: Sequence[Mapping[str, float]]) -> float:
    """The mean over seeds and the prompts that all of them were scored on."""
    names = common(finals)
    return float(np.mean([[final[name] for name in names] for final in finals]))


class GivenUp(BaseException):
    """Raised out of a run that need not go on: the trial is pruned, or an error concerns every trial.

    No Exception: a tracker that raises one is left out, and the run goes on.
    """

    def __init__(self, metric: float = 0.0, note: str = "", error: UpslopeError | None = None) -> None:
        super().__init__(note)
        self.metric, self.note, self.error = metric, note, error


class Watch:
    """A tracker of one seed's run that looks at each of its evaluations beside the incumbent's."""

    def __init__(
        self, trials: Trials, claim: Claim, seed: int, recipe: Recipe, groups: Sequence[Sequence[str]]
    ) -> None:
        self._trials, self._claim, self._seed, self._recipe, self._groups = trials, claim, seed, recipe, groups

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Raises: GivenUp where the evidence suffices, or a value lies outside the bounds."""
        plan = self._trials.plan
        if "evaluate/metric" not in values or plan.bounds is None:
            return
        own = readings(plan.run_path(self._claim.number, self._seed))[step]
        if found := outside(own, plan.bounds):
            raise GivenUp(error=_out_of_bounds(*found, plan.bounds))
        last = self._seed + 1 == plan.seeds and step >= self._recipe.training.steps
        incumbent = self._trials.incumbent()
        if step == 0 or last or incumbent is None:
            return
        looks = paired_looks(
            self._trials.readings(self._claim.number), self._trials.readings(incumbent.number), self._groups
        )
        level = share_of_error(incumbent.number, planned=self._trials.planned, error=plan.error)
        width = plan.bounds[1] - plan.bounds[0]
        evidence = log_evidence(looks, num_looks=self._num_looks, width=width, level=level)
        if evidence >= -np.log(level):
            note = f"worse than trial {incumbent.number}, seen at step {step} of seed {self._seed}"
            raise GivenUp(float(np.mean(list(own.values()))), note)

    def close(self) -> None:
        """Nothing is pending."""

    @property
    def _num_looks(self) -> int:
        """Evaluations after the first step, of all seeds."""
        every = self._recipe.evaluation.every_steps
        assert every is not None, "every trial is evaluated at its end at least"
        return self._trials.plan.seeds * -(-self._recipe.training.steps // every)


def _out_of_bounds(prompt: str, value: float, bounds: tuple[float, float]) -> RecipeError:
    return RecipeError(
        f"the metric of prompt {prompt} is {value:g}, outside the bounds {bounds[0]:g} to {bounds[1]:g} that pruning "
        "bets by; give the metric's own bounds, or prune nothing"
    )


def _described(trials: Trials, number: int) -> str:
    every = trials.all()
    trial, best = every[number], trials.incumbent()
    ended = sum(each.state != "running" for each in every)
    result = f"{trial.metric:.4f}" if trial.state == "finished" else f"{trial.state} ({trial.note})"
    found = "" if best is None else f"; best {best.metric:.4f} of trial {best.number}"
    return f"[{ended}/{trials.plan.trials}] trial {number}: {result}, {written(trial.values)}{found}"


def main() -> None:
    """`python -m upslope.tuning.worker FOLDER`: what `tune` starts for each of several workers."""
    plan = Plan.load(Path(sys.argv[1]))
    try:
        work(plan, task_of(plan.recipe), lambda line: print(line, flush=True))
    except UpslopeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
