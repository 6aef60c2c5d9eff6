"""`upslope`: every command, and how errors and interrupts are shown."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from upslope import __version__
from upslope.cli import (
    compare,
    doctor,
    evaluate,
    fetch,
    generate,
    init,
    predict,
    presets,
    quickstart,
    rate,
    report,
    resume,
    select,
    train,
    tune,
    watch,
)
from upslope.errors import UpslopeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Reinforcement learning for language models, from a laptop to a cluster.",
)
app.command()(quickstart.quickstart)
app.command()(train.train)
app.command()(resume.resume)
app.command()(generate.generate)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(select.select)
app.command()(tune.tune)
app.command()(predict.predict)
app.command()(report.report)
app.command()(watch.watch)
app.command()(rate.rate)
app.command()(presets.presets)
app.command()(init.init)
app.command()(doctor.doctor)
app.command()(fetch.fetch)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"upslope {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Reinforcement learning for language models, from a laptop to a cluster."""


def run() -> None:
    """The entry point: a user's error is one sentence and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app()
    except UpslopeError as error:
        errors.print("error:", style="bold red", end=" ")
        errors.print(str(error), markup=False)
        sys.exit(2)
