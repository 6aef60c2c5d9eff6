"""`upslope predict MODEL FILE`: what a model answers to the prompts of a data file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def predict(
    model: Annotated[str, typer.Argument(help="A run folder.")],
    file: Annotated[Path, typer.Argument(help="Prompts: JSONL, CSV, TSV or Parquet.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; standard output by default.")] = None,
    prompt: Annotated[str, typer.Option(help="The column that holds the text, or the list of words.")] = "text",
    strict: Annotated[bool, typer.Option(help="What cannot be read is an error, else skipped and counted.")] = True,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a model's most likely answer to each prompt of a file, one JSON object a line."""
    import dataclasses

    from upslope.engines.choice import engine_for
    from upslope.evaluation.sources import policy_to_sample, sampling_of, source_and_recipe
    from upslope.recipe import Recipe
    from upslope.report.run import write_text
    from upslope.tasks.prompts import usable
    from upslope.tasks.readers import read_prompts

    source, recipe = source_and_recipe(model)
    settings = recipe or Recipe.resolve({})
    prompts, skipped = read_prompts(file, prompt=prompt, strict=strict)
    policy = policy_to_sample(source, settings, seed=seed)
    engine = engine_for(policy, settings.engine.model_dump())
    engine.load(policy, version=0)
    greedy = dataclasses.replace(sampling_of(settings), temperature=0.0)
    prompts, lost = usable(prompts, policy.encode, strict=strict)
    rollouts = engine.sample([policy.encode(p) for p in prompts], group_size=1, sampling=greedy, seed=seed)
    lines = [
        json.dumps(
            {**dict(rollout.prompt.columns), prompt: rollout.prompt.text, "prediction": rollout.text}
            | {"probability": math.exp(sum(rollout.engine_logprobs))},
            ensure_ascii=False,
        )
        for rollout in rollouts
    ]
    text, said = "\n".join(lines) + "\n", Console(stderr=True, highlight=False)
    for reason, count in {**skipped, **lost}.items():
        said.print(f"{count} left out: {reason}", markup=False)
    if cut := sum(policy.cuts(p) for p in prompts):
        said.print(f"{cut} prompts are longer than what the model reads: their ends were cut")
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    said.print(f"{len(lines)} predictions in {out}", markup=False)
