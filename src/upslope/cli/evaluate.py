"""`upslope evaluate MODEL --task NAME`: a model's metric on held-out prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from upslope.cli.generate import model_source


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a hub id or an embedded name.")],
    task: Annotated[str | None, typer.Option(help="A task's name; by default the one of the run folder.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; may be repeated.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="How many held-out prompts; all by default.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of words.")] = False,
) -> None:
    """Measure a model's metric on a task's held-out prompts, with a 95% interval."""
    from upslope.errors import RecipeError
    from upslope.evaluation.evaluate import evaluate as measure
    from upslope.recipe import Recipe, parse_override
    from upslope.tasks import load_task

    recipe_path = Path(model) / "recipe.toml"
    recipe = Recipe.load(recipe_path) if recipe_path.exists() else None
    if task is None and recipe is None:
        raise RecipeError(f"{model!r} is no run folder, so --task must name the task to evaluate on")
    same_task = recipe is not None and task in (None, recipe.task.name)
    given = dict(recipe.task.options) if recipe is not None and same_task else {}
    given |= dict(parse_override(text) for text in options or [])
    result = measure(
        model_source(model),
        load_task(task or recipe.task.name, given),  # type: ignore[union-attr]
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens or (recipe.sampling.max_new_tokens if recipe else 64),
        temperature=temperature,
        seed=seed,
    )
    interval, measured = result.interval, result.measurement
    failed = sum(measured.failures.values())
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        bounds = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
        console.print(
            json.dumps({"metric": result.metric, **bounds, "prompts": len(measured.values), "failed": failed}),
            markup=False,
        )
        return
    console.print(
        f"{result.metric} = {interval.estimate:.3f}, 95% interval [{interval.low:.3f}, {interval.high:.3f}], "
        f"{len(measured.values)} prompts" + (f", {failed} could not be scored" if failed else ""),
        markup=False,
    )
