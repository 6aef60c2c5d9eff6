"""What tuning found: the settings, their naive and their honest estimate, every trial, and what mattered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.errors import RecipeError
from upslope.evaluation.clustered import clustered_mean, crossed_mean, with_imagined
from upslope.evaluation.evaluate import evaluate
from upslope.evaluation.intervals import Interval
from upslope.records import Prompt
from upslope.report.document import Table
from upslope.report.run import Run, write_text
from upslope.tasks import Task
from upslope.tuning.page import page
from upslope.tuning.plan import Plan, only
from upslope.tuning.samplers import importance
from upslope.tuning.space import written
from upslope.tuning.trials import Trial, Trials
from upslope.tuning.worker import common, tuned_on

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Tuning:
    """The best setting of those tried, and all trials.

    estimate: its metric on num_fresh_prompts prompts that tuning never saw. naive: on the num_prompts that it was
    chosen by, which flatters it. Both hold for other prompts and, of two seeds or more, other seeds. importance: shares
    of the parameters in what sets the best trials apart. best: the number of its trial; path: its recipe.
    """

    metric: str
    best: int
    values: Mapping[str, Any]
    estimate: Interval
    naive: Interval
    num_fresh_prompts: int
    num_prompts: int
    seeds: int
    trials: tuple[Trial, ...]
    importance: Mapping[str, float]
    notes: tuple[str, ...]
    path: str

    def count(self, state: str) -> int:
        """How many trials are in a state: "finished", "pruned", "failed"."""
        return sum(trial.state == state for trial in self.trials)

    def __str__(self) -> str:
        low, high = self.estimate.low, self.estimate.high
        return (
            f"trial {self.best} is the best of {len(self.trials)}: {self.metric} {self.estimate.estimate:.4f} "
            f"[{low:.4f}, {high:.4f}] on {self.num_fresh_prompts} prompts that tuning never saw"
        )

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self)

    def estimates(self) -> list[tuple[str, Interval, int]]:
        """Both estimates of the best setting, by name and number of prompts."""
        return [
            ("never seen by tuning", self.estimate, self.num_fresh_prompts),
            ("tuned on (flatters)", self.naive, self.num_prompts),
        ]

    def markdown(self) -> str:
        """The sentence, the settings, both estimates, importance, and every trial."""
        estimates = [
            (name, f"{i.estimate:.4f}", f"[{i.low:.4f}, {i.high:.4f}]", str(count))
            for name, i, count in self.estimates()
        ]
        trials = [
            (str(t.number), t.state, "" if t.metric is None else f"{t.metric:.4f}", written(t.values), t.note)
            for t in self.trials
        ]
        parts = [
            f"**{self}**",
            f"`upslope train {self.path}` trains it: {written(self.values)}",
            Table("Estimate", [("held-out prompts", self.metric, "95% interval", "prompts"), *estimates]).markdown(),
            *(f"- {note}" for note in self.notes),
        ]
        if self.importance:
            shares = [(name, f"{share:.0%}") for name, share in self.importance.items()]
            parts.append(Table("What mattered", [("setting", "share"), *shares]).markdown())
        parts.append(Table("Trials", [("trial", "state", self.metric, "settings", "note"), *trials]).markdown())
        return "\n\n".join(parts) + "\n"


def conclude(plan: Plan, task: Task) -> Tuning:
    """The result once all trials have ended, written into the folder.

    Raises: RecipeError where none finished.
    """
    trials = Trials(plan)
    every, best = trials.all(), trials.incumbent()
    if best is None:
        problem = next((trial.note for trial in every if trial.state == "failed"), "none was run to its end")
        raise RecipeError(f"no trial of {len(every)} finished, the first because: {problem}")
    groups, fresh = plan.prompts(task)
    naive = tuned_on(plan, best.number)
    honest = [_evaluated(plan, best.number, seed, only(task, fresh)) for seed in range(plan.seeds)]
    found = Tuning(
        metric=task.metric_name,
        best=best.number,
        values=best.values,
        estimate=_interval(honest, fresh, plan.bounds),
        naive=_interval(naive, groups, plan.bounds),
        num_fresh_prompts=len(common(honest)),
        num_prompts=len(common(naive)),
        seeds=plan.seeds,
        trials=tuple(every),
        importance=importance(trials.study, plan.space),
        notes=tuple(_notes(plan, every, sum(map(len, groups)) - len(common(naive)))),
        path=str(plan.best_path),
    )
    write_text(plan.best_path, plan.settings(best.values).to_toml())
    write_text(plan.folder / "result.json", json.dumps(found.as_dict(), indent=1) + "\n")
    write_text(plan.folder / "report.md", found.markdown())
    write_text(plan.folder / "report.html", page(found, plan))
    return found


def _evaluated(plan: Plan, number: int, seed: int, task: Task) -> Mapping[str, float]:
    """The metric of the model that a trial's seed ended with, decoded as the trial was, by prompt."""
    recipe = plan.recipe
    temperature = 0.0 if recipe.evaluation.greedy else recipe.sampling.temperature
    found = evaluate(Run.open(plan.run_path(number, seed)), task, temperature=temperature, seed=plan.seed)
    return {str(prompt): value for prompt, value in found.measurement.values.items()}


def _interval(
    finals: Sequence[Mapping[str, float]], groups: Sequence[Sequence[Prompt]], bounds: tuple[float, float] | None
) -> Interval:
    """The mean over seeds and prompts with its 95% interval, prompts of one text together; where all values are the
    same, it allows for two prompts that were not seen."""
    cluster = {str(prompt.id): number for number, group in enumerate(groups) for prompt in group}
    names = common(finals)
    values = np.array([[final[name] for name in names] for final in finals])
    clusters, estimate = np.array([cluster[name] for name in names]), float(values.mean())
    mean = crossed_mean(values, clusters)
    if bounds is not None and not np.ptp(values):
        mean = clustered_mean(*with_imagined(values[0], clusters, low=bounds[0], high=bounds[1]))
    low, high = map(float, mean.bounds(_CONFIDENCE))
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Interval(estimate, low, high)


def _notes(plan: Plan, trials: Sequence[Trial], unscored: int) -> Iterator[str]:
    """What a reader of the estimate has to know."""
    if plan.seeds == 1:
        yield "one seed: the intervals are over prompts, and say nothing of how much another seed would change"
    if unscored:
        yield f"{unscored} prompts could not be scored for the best setting and are left out"
    failures = [trial for trial in trials if trial.state == "failed"]
    if failures:
        named = "; ".join(f"trial {trial.number}: {trial.note}" for trial in failures[:3])
        yield f"{len(failures)} of {len(trials)} trials failed: {named}"
    if plan.bounds is None:
        yield "nothing was pruned: every trial ran to its end"
