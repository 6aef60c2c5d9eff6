"""`upslope select A B C --task NAME`: the best of several models, and what it is worth."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from upslope.cli import asked


def select(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run folders, model folders, names, or ensembles A+B.")
    ],
    task: asked.TaskName = None,
    options: asked.TaskOptions = None,
    metric: asked.Metric = None,
    num_prompts: asked.NumPrompts = None,
    samples: asked.Samples = 1,
    max_new_tokens: asked.MaxNewTokens = None,
    temperature: asked.Temperature = 0.0,
    kind: asked.Kind = "causal",
    ensembles: asked.Ensembles = "vote",
    cluster: asked.Cluster = None,
    margin: asked.Margin = None,
    confidence: asked.Confidence = 0.95,
    look_every: Annotated[int, typer.Option(min=1, help="Drop who is worse after so many prompts.")] = 50,
    fresh: Annotated[float, typer.Option(help="The share of prompts kept for the winner's own estimate.")] = 0.25,
    seed: asked.Seed = 0,
    as_json: asked.AsJson = False,
    save: asked.Save = None,
) -> None:
    """Choose the best of several models on a task's held-out prompts; who is shown to be worse answers no more."""
    from upslope.evaluation.select import select as find
    from upslope.recipe import parse_override
    from upslope.report import document

    document.check_place(save)
    found = find(
        asked.candidates(models, ensembles),
        task,
        options=dict(parse_override(text) for text in options or []),
        metric=metric,
        num_prompts=num_prompts,
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        kind=kind,
        cluster=cluster,
        margin=margin,
        confidence=confidence,
        look_every=look_every,
        fresh=fresh,
        seed=seed,
    )
    if save is not None:
        document.save(save, found.document(), found.as_dict())
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(found.as_dict()), markup=False)
        return
    console.print(str(found), markup=False)
    head, *rows = found.rows()
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
