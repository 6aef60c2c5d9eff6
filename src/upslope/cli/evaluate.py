"""`upslope evaluate MODEL --task NAME`: a model's metric on held-out prompts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from upslope.cli import asked

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
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0, the default, decodes greedily; with --estimators the run's own.")
    ] = None,
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
        typer.Option(
            help="Where to write it: .html, .md, else JSON; RUN/evaluation.json of a run, RUN/estimators.* all three."
        ),
    ] = None,
    estimators: Annotated[
        bool, typer.Option("--estimators", help="Judge advantage estimators instead: a page, Markdown and JSON.")
    ] = False,
    branches: Annotated[
        int | None, typer.Option(help="With --estimators: new ends of a row, after a decision and before; 16.")
    ] = None,
    other_task: Annotated[str | None, typer.Option(help="With --estimators: a second task to try them on.")] = None,
    shifted: Annotated[
        str | None,
        typer.Option(help="With --estimators: a model whose rows to try them on; else a higher temperature."),
    ] = None,
) -> None:
    """Measure a model's metric on a task's held-out prompts, with a 95% interval; of labels, each one's F1 as well.

    With --estimators: how near estimates of the advantage (GAE, Monte Carlo, advantage heads, ...) are to the truth.
    """
    from upslope.errors import RecipeError
    from upslope.evaluation.evaluate import evaluate as measure
    from upslope.recipe import parse_override
    from upslope.report import document

    document.check_place(save)
    task_options = dict(parse_override(text) for text in options or [])
    of_estimators = {"branches": branches, "other": other_task, "shifted": shifted}
    if estimators:
        if beams is not None or detect is not None:
            raise RecipeError("--beams and --detect are about a metric; leave them out beside --estimators")
        sampled = {"num_prompts": num_prompts, "max_new_tokens": max_new_tokens, "temperature": temperature}
        given = {name: value for name, value in {**of_estimators, **sampled}.items() if value is not None}
        _judge(model, task, save, as_json=as_json, options=task_options, kind=kind, seed=seed, **given)
        return
    if any(value is not None for value in of_estimators.values()):
        raise RecipeError("--branches, --other-task and --shifted go with --estimators")
    (named,) = asked.candidates([model], ensembles)
    result = measure(
        named,
        task,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature or 0.0,
        beams=beams,
        length_penalty=length_penalty,
        kind=kind,
        seed=seed,
        options=task_options,
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


def _judge(model: str, task: str | None, save: Path | None, *, as_json: bool, **settings: Any) -> None:
    """Judge advantage estimators; unless one file is named, a page, Markdown and JSON; and the sentence."""
    from upslope.evaluation.estimators import judge_estimators
    from upslope.report import document

    found = judge_estimators(model, task, **settings)
    folder = Path(model) if (Path(model) / "recipe.toml").is_file() else Path()
    paths = [save] if save is not None else [folder / f"estimators{ending}" for ending in (".html", ".md", ".json")]
    for path in paths:
        document.save(path, found.document(), found.as_dict())
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(found.as_dict()), markup=False)
        return
    console.print(str(found), markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(", ".join(map(str, paths)), markup=False)


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
