"""`upslope evaluate MODEL --task NAME`: a model's metric on held-out prompts."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console


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
    from upslope.evaluation.evaluate import evaluate as measure
    from upslope.recipe import parse_override

    result = measure(
        model,
        task,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        options=dict(parse_override(text) for text in options or []),
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
