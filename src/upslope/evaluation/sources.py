"""What a model, a run or a task that somebody named stands for: what to load, and how it is sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import ModelError, RecipeError
from upslope.policies.loading import CRITIC_FILE, load_critic, load_policy
from upslope.policies.policy import ReadablePolicy
from upslope.policies.sampling import Sampling
from upslope.recipe import Recipe
from upslope.report.run import Run
from upslope.tasks import Task, task_of
from upslope.tasks.loading import IN_MEMORY

Model = str | Path | Run


def name_of(model: Model) -> str:
    """What a model is called in results: its folder or name."""
    return str(model.folder if isinstance(model, Run) else model)


def source_and_recipe(model: Model) -> tuple[str, Recipe | None]:
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


def decoding(recipe: Recipe, *, temperature: float, max_new_tokens: int | None) -> Sampling:
    """The recipe's own distribution at another temperature and, where given, length."""
    sampling = dataclasses.replace(sampling_of(recipe), temperature=temperature)
    return sampling if max_new_tokens is None else dataclasses.replace(sampling, max_new_tokens=max_new_tokens)


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
