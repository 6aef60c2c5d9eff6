"""Evaluate a model on a task: load, decode the held-out prompts, score, and give the mean with its interval."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upslope.errors import DataError, RecipeError
from upslope.evaluation.arms import arm_of, first_recipe
from upslope.evaluation.ensembles import Candidate, Ensemble
from upslope.evaluation.intervals import Interval, mean_interval
from upslope.evaluation.labels import LabelReport, label_report
from upslope.evaluation.metrics import Measurement, measured
from upslope.evaluation.planning import Plan, plan
from upslope.evaluation.sources import decoding, task_to_evaluate
from upslope.recipe import Recipe
from upslope.report.document import Bars, Document
from upslope.rewards import Scorer
from upslope.search.beam import BeamEngine
from upslope.tasks import Task
from upslope.tasks.prompts import usable


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metric's mean with its interval, and everything measured; of labels, how well each is chosen.

    cut counts prompts that lost their end, being longer than what the model reads; skipped those left out, by reason.
    """

    metric: str
    interval: Interval
    measurement: Measurement
    labels: LabelReport | None = None
    cut: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)

    def plan(self, effect: float, *, power: float = 0.8) -> Plan:
        """How many prompts it takes to find such a difference between two models like this one."""
        return plan(list(self.measurement.values.values()), effect, power=power)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        bounds = {"mean": self.interval.estimate, "low": self.interval.low, "high": self.interval.high}
        measured = self.measurement
        summary = {"metric": self.metric, **bounds, "prompts": len(measured.values), "failed": measured.num_failed}
        summary |= {"cut": self.cut, "skipped": dict(self.skipped)}
        return summary | ({} if self.labels is None else {"labels": dataclasses.asdict(self.labels)})

    def __str__(self) -> str:
        found, failed = self.interval, self.measurement.num_failed
        lost = f", {failed} could not be scored" if failed else ""
        bounds = f"[{found.low:.3f}, {found.high:.3f}]"
        return (
            f"{self.metric} = {found.estimate:.3f}, 95% interval {bounds}, {len(self.measurement.values)} prompts{lost}"
        )

    def notes(self) -> list[str]:
        """What was not read or left out."""
        cut = [f"{self.cut} prompts are longer than what the model reads: their ends were cut"] if self.cut else []
        return [*cut, *(f"{count} left out: {reason}" for reason, count in self.skipped.items())]

    def document(self, title: str) -> Document:
        """To be read: the sentence, the metric, and of labels each one's F1."""
        blocks = [Bars(self.metric, [(title, self.interval.estimate, self.interval.low, self.interval.high)])]
        if self.labels is not None:
            tables = [("F1 of labels", self.labels.table), ("F1 of entities", self.labels.entities)]
            for name, table in tables:
                rows = [] if table is None else [(row.name, row.f1) for row in table.classes]
                rows += [] if table is None else [("macro", table.macro), ("micro", table.micro)]
                blocks += [Bars(name, [(row, i.estimate, i.low, i.high) for row, i in rows])] if rows else []
        return Document(title, str(self), blocks, self.notes())


def evaluate(
    model: Candidate,
    task: Task | str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    num_prompts: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    beams: int | None = None,
    length_penalty: float = 1.0,
    kind: str = "causal",
    seed: int = 0,
) -> Evaluation:
    """The task's metric of a model on the task's held-out prompts, with a 95% interval over prompts.

    model: a run (then task, rewards, stop strings and length are the run's own unless given), a model folder, a hub id,
    an embedded name, or an Ensemble of these; kind is that of models that are no runs. task: a Task, or a task's name
    with its options. Temperature 0 decodes greedily. beams: decode by beam search of this width instead; see
    search.beam.BeamEngine for its length_penalty.
    Raises: RecipeError when no task is named; DataError when it has no held-out prompts; ModelError; RewardError when
    no prompt could be scored.
    """
    recipe = first_recipe([model])
    task = task_to_evaluate(recipe, task, options or {})
    if not task.eval_prompts[:num_prompts]:
        raise DataError(f"task {task.name!r} has no held-out prompts to evaluate on")
    if beams is not None and isinstance(model, Ensemble):
        raise RecipeError("an ensemble's members answer by sampling or greedily; leave out beams")
    settings = recipe or Recipe.resolve({})
    sampling = decoding(settings, temperature=temperature, max_new_tokens=max_new_tokens)
    engine = None if beams is None else BeamEngine(width=beams, length_penalty=length_penalty)
    arm = arm_of(model, kind=kind, labels=task.labels, seed=seed, engine=engine)
    prompts, lost = usable(task.eval_prompts[:num_prompts], arm.encode, strict=task.strict)
    with Scorer(task.terms, timeout_s=settings.reward.timeout_s, isolation=settings.reward.isolation) as scorer:
        scored = scorer.score(arm.answer(prompts, samples=1, sampling=sampling))
    found = measured(scored, metric=task.metric_name)
    labels = None
    if task.labels and task.label_column is not None:
        labels = label_report(found.rollouts, labels=task.labels, column=task.label_column)
    cut, skipped = sum(arm.cuts(prompt) for prompt in prompts), Counter(task.skipped) + lost
    return Evaluation(task.metric_name, mean_interval(list(found.values.values())), found, labels, cut, skipped)
