"""`upslope evaluate MODEL --task NAME`: a model's metric on held-out prompts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from upslope.evaluation.intervals import Interval
    from upslope.evaluation.labels import F1Table, LabelReport

_SHOWN = 8
"""Confusions and errors printed; the file has more."""


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a hub id or an embedded name.")],
    task: Annotated[str | None, typer.Option(help="A task's name; by default the one of the run folder.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; may be repeated.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="How many held-out prompts; all by default.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0, the default, decodes greedily; with --estimators the run's own.")
    ] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Decode by beam search of this width instead.")] = None,
    length_penalty: Annotated[float, typer.Option(help="Beams score log p / length^this.")] = 1.0,
    seed: Annotated[int, typer.Option()] = 0,
    detect: Annotated[
        float | None, typer.Option(help="Say how many prompts it takes to find such a difference.")
    ] = None,
    power: Annotated[float, typer.Option(min=0.5, max=0.999, help="How often --detect is to find it.")] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of words.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Where to write it all; RUN/evaluation.json for a run, or RUN/estimators.html, .md and .json."
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
    from upslope.report.run import write_text

    task_options = dict(parse_override(text) for text in options or [])
    asked = {"branches": branches, "other": other_task, "shifted": shifted}
    if estimators:
        if beams is not None or detect is not None:
            raise RecipeError("--beams and --detect are about a metric; leave them out beside --estimators")
        sampled = {"num_prompts": num_prompts, "max_new_tokens": max_new_tokens, "temperature": temperature}
        given = {name: value for name, value in {**asked, **sampled}.items() if value is not None}
        _judge(model, task, save, as_json=as_json, options=task_options, seed=seed, **given)
        return
    if any(value is not None for value in asked.values()):
        raise RecipeError("--branches, --other-task and --shifted go with --estimators")
    result = measure(
        model,
        task,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature or 0.0,
        beams=beams,
        length_penalty=length_penalty,
        seed=seed,
        options=task_options,
    )
    document = result.as_dict()
    plan = None if detect is None else result.plan(detect, power=power)
    if plan is not None:
        document["plan"] = dataclasses.asdict(plan)
    target = save or (Path(model) / "evaluation.json" if (Path(model) / "recipe.toml").is_file() else None)
    if target is not None:
        write_text(target, json.dumps(document, indent=1) + "\n")
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(document), markup=False)
        return
    interval, measured = result.interval, result.measurement
    failed = measured.num_failed
    console.print(
        f"{result.metric} = {interval.estimate:.3f}, 95% interval [{interval.low:.3f}, {interval.high:.3f}], "
        f"{len(measured.values)} prompts" + (f", {failed} could not be scored" if failed else ""),
        markup=False,
    )
    if result.cut:
        console.print(f"{result.cut} prompts are longer than what the model reads: their ends were cut")
    for reason, count in result.skipped.items():
        console.print(f"{count} left out: {reason}", markup=False)
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
    """Judge advantage estimators; three files of one name, and the sentence."""
    from upslope.evaluation.estimators import judge_estimators
    from upslope.report.estimators import estimator_page
    from upslope.report.run import write_text

    found = judge_estimators(model, task, **settings)
    document = found.as_dict()
    folder = Path(model) if (Path(model) / "recipe.toml").is_file() else Path()
    stem = (save or folder / "estimators.html").with_suffix("")
    texts = {".html": estimator_page(document), ".md": found.markdown(), ".json": json.dumps(document, indent=1) + "\n"}
    for suffix, text in texts.items():
        write_text(Path(f"{stem}{suffix}"), text)
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(document), markup=False)
        return
    console.print(str(found), markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"{stem}.html, .md, .json", markup=False)


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
