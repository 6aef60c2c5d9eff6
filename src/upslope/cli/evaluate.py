"""`upslope evaluate MODEL --task NAME`: a model's metric on held-out prompts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

from upslope.cli import asked
from upslope.cli.asked import chosen

if TYPE_CHECKING:
    from upslope.evaluation.intervals import Interval
    from upslope.evaluation.labels import F1Table, LabelReport

_SHOWN = 8
"""Confusions and errors printed; the file has more."""


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a hub id or an embedded name.")],
    task: asked.TaskName = None,
    options: asked.TaskOptions = None,
    num_prompts: asked.NumPrompts = None,
    max_new_tokens: asked.MaxNewTokens = None,
    temperature: asked.Temperature = 0.0,
    kind: asked.Kind = "causal",
    ensembles: asked.Ensembles = "vote",
    beams: Annotated[int | None, typer.Option(min=1, help="Decode by beam search of this width instead.")] = None,
    length_penalty: Annotated[float, typer.Option(help="Beams score log p / length^this.")] = 1.0,
    seed: asked.Seed = 0,
    detect: asked.Detect = None,
    power: asked.Power = 0.8,
    as_json: asked.AsJson = False,
    save: Annotated[
        Path | None,
        typer.Option(help="Where to write it: .html, .md, else JSON; RUN/evaluation.json for a run."),
    ] = None,
) -> None:
    """Measure a model's metric on a task's held-out prompts, with a 95% interval; of labels, each one's F1 as well."""
    from upslope.evaluation.ensembles import candidate
    from upslope.evaluation.evaluate import evaluate as measure
    from upslope.recipe import parse_override
    from upslope.report import document

    by = cast(Literal["vote", "average"], chosen("way to answer together", ensembles, ("vote", "average")))
    result = measure(
        candidate(model, by=by),
        task,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        beams=beams,
        length_penalty=length_penalty,
        kind=kind,
        seed=seed,
        options=dict(parse_override(text) for text in options or []),
    )
    numbers = result.as_dict()
    plan = None if detect is None else result.plan(detect, power=power)
    if plan is not None:
        numbers["plan"] = dataclasses.asdict(plan)
    target = save or (Path(model) / "evaluation.json" if (Path(model) / "recipe.toml").is_file() else None)
    if target is not None:
        document.save(target, result.document(model), numbers)
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(numbers), markup=False)
        return
    console.print(str(result), markup=False)
    for note in result.notes():
        console.print(note, markup=False)
    if plan is not None:
        console.print(
            f"to find a difference of {plan.effect:g} between two models in {plan.power:.0%} of comparisons: "
            f"{plan.unpaired} prompts each where they answer different ones, {plan.paired} where they answer the same "
            "and their scores correlate by 0.5",
            markup=False,
        )
    if result.labels is not None:
        _show(console, result.labels)


def _show(console: Console, report: LabelReport) -> None:
    """The tables of a label report; of confusions and errors the largest."""
    console.print(_table("label", report.table))
    if report.entities is not None:
        console.print(_table("entity", report.entities))
    pairs = [
        (count, right, decided)
        for right, row in zip(report.labels, report.confusion, strict=True)
        for decided, count in zip(report.labels, row, strict=True)
        if right != decided and count
    ]
    for count, right, decided in sorted(pairs, reverse=True)[:_SHOWN]:
        console.print(f"  {count:>5} times {decided} where {right} is right", markup=False)
    for error in report.errors[:_SHOWN]:
        where = error["text"] if error["word"] is None else f"{error['word']} in {error['text']}"
        sure = f"{error['confidence']:.2f} sure of {error['decided']} where {error['right']} is right"
        console.print(f"  {sure}: {where}", markup=False)
    console.print(f"expected calibration error {report.calibration.expected_error:.3f}")


def _table(title: str, scores: F1Table) -> Table:
    table = Table(title, "there", "precision", "recall", "F1", box=None)
    for row in scores.classes:
        table.add_row(row.name, str(row.support), *(_interval(value) for value in (row.precision, row.recall, row.f1)))
    table.add_row("macro", "", "", "", _interval(scores.macro))
    table.add_row("micro", "", "", "", _interval(scores.micro))
    return table


def _interval(value: Interval) -> str:
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"
