"""Evaluate a model on a task: load, decode the held-out prompts, score, and give the mean with its interval."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.engines.choice import engine_for
from upslope.engines.engine import Engine
from upslope.errors import DataError, ModelError, RecipeError
from upslope.evaluation.intervals import Interval, mean_interval
from upslope.evaluation.labels import LabelReport, label_report
from upslope.evaluation.metrics import Measurement, measure
from upslope.evaluation.planning import Plan, plan
from upslope.policies.loading import CRITIC_FILE, load_critic, load_policy
from upslope.policies.policy import ReadablePolicy
from upslope.policies.sampling import Sampling
from upslope.recipe import Recipe
from upslope.report.run import Run
from upslope.rewards import Scorer
from upslope.search.beam import BeamEngine
from upslope.tasks import Task, task_of
from upslope.tasks.loading import IN_MEMORY
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


def evaluate(
    model: str | Path | Run,
    task: Task | str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    num_prompts: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    beams: int | None = None,
    length_penalty: float = 1.0,
    seed: int = 0,
) -> Evaluation:
    """The task's metric of a model on the task's held-out prompts, with a 95% interval over prompts.

    model: a run (then task, rewards, stop strings and length are the run's own unless given), a model folder, a hub id
    or an embedded name. task: a Task, or a task's name with its options. Temperature 0 decodes greedily.
    beams: decode by beam search of this width instead; see search.beam.BeamEngine for its length_penalty.
    Raises: RecipeError when no task is named; DataError when it has no held-out prompts; ModelError; RewardError when
    no prompt could be scored.
    """
    source, recipe = source_and_recipe(model)
    task = task_to_evaluate(recipe, task, options or {})
    prompts = task.eval_prompts[:num_prompts]
    if not prompts:
        raise DataError(f"task {task.name!r} has no held-out prompts to evaluate on")
    settings = recipe or Recipe.resolve({})
    sampling = dataclasses.replace(sampling_of(settings), temperature=temperature)
    if max_new_tokens is not None:
        sampling = dataclasses.replace(sampling, max_new_tokens=max_new_tokens)
    policy = policy_to_sample(source, settings, labels=task.labels, seed=seed)
    engine: Engine = engine_for(policy, settings.engine.model_dump())
    if beams is not None:
        engine = BeamEngine(width=beams, length_penalty=length_penalty)
    engine.load(policy, version=0)
    prompts, lost = usable(prompts, policy.encode, strict=task.strict)
    encoded, reward = [policy.encode(prompt) for prompt in prompts], settings.reward
    with Scorer(task.terms, timeout_s=reward.timeout_s, isolation=reward.isolation) as scorer:
        measured = measure(engine, encoded, scorer, metric=task.metric_name, sampling=sampling, seed=seed)
    labels = None
    if task.labels and task.label_column is not None:
        labels = label_report(measured.rollouts, labels=task.labels, column=task.label_column)
    cut, skipped = sum(policy.cuts(prompt) for prompt in prompts), Counter(task.skipped) + lost
    return Evaluation(task.metric_name, mean_interval(list(measured.values.values())), measured, labels, cut, skipped)


def source_and_recipe(model: str | Path | Run) -> tuple[str, Recipe | None]:
    """What to load, and the recipe where the model is a run (or a run's folder)."""
    folder = model.folder if isinstance(model, Run) else Path(model)
    if not (folder / "recipe.toml").is_file():
        return str(model), None
    run = Run.open(folder)
    if not (run.model_path / "config.json").is_file():
        raise ModelError(f"{folder} has no final model yet: {run.model_path} is written when training ends")
    recipe = Recipe.load(run.recipe_path)
    if recipe.method == "reward_model":
        raise ModelError(
            f"{folder} holds a reward model, which writes nothing; its accuracy stands in the run's evaluations, and "
            f"as a reward it is named 'model:{folder}'"
        )
    return str(run.model_path), recipe


def policy_to_sample(
    source: str, recipe: Recipe, *, labels: Sequence[str] = (), critic: str | None = None, seed: int
) -> ReadablePolicy:
    """A policy of the recipe's kind without reference, in its precision and on its device; with the critic that lies
    beside its model where the critic's kind is given.

    Raises: ModelError where it cannot be loaded.
    """
    policy = load_policy(
        source,
        kind=recipe.model.kind,
        labels=labels,
        max_length=recipe.model.max_length,
        mark_case=recipe.model.mark_case,
        critic=critic,
        keep_reference=False,
        dtype=recipe.model.dtype,
        lora=None,
        freeze=(),
        gradient_checkpointing=False,
        device=recipe.model.device,
        seed=seed,
    )
    if critic is not None:
        load_critic(policy, Path(source) / CRITIC_FILE)
    return policy


def sampling_of(recipe: Recipe) -> Sampling:
    """The distribution a recipe trains on."""
    settings = recipe.sampling
    return Sampling(settings.temperature, settings.top_k, settings.top_p, settings.max_new_tokens, settings.stop)


def task_to_evaluate(recipe: Recipe | None, task: Task | str | None, options: Mapping[str, Any]) -> Task:
    """The task given or named, by default the recipe's own; with the recipe's rewards where the task is its own.

    Raises: RecipeError when there is neither, or a Task object comes with options.
    """
    if isinstance(task, Task):
        if options:
            raise RecipeError(f"the task is a Task object, which takes no options, but got {', '.join(options)}")
        return task_of(recipe, task) if recipe is not None and recipe.task.name == IN_MEMORY else task
    if recipe is None and task is None:
        raise RecipeError("the model is no run, so a task must be named to evaluate on")
    if recipe is None or task not in (None, recipe.task.name):
        return task_of(Recipe.resolve({"task": {"name": task, "options": dict(options)}}))
    own = recipe.task.model_copy(update={"options": {**recipe.task.options, **options}})
    return task_of(recipe.model_copy(update={"task": own}))
