"""`upslope resume RUN`: go on where a run stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from upslope.cli.profile import ProfileOption, show_profile
from upslope.cli.progress import LiveProgress


def resume(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, training.steps say.")
    ] = None,
    profile: ProfileOption = False,
) -> None:
    """Continue a run from its newest intact checkpoint, bit for bit as if it had never stopped."""
    from upslope.recipe import Recipe, parse_override
    from upslope.report.run import Run
    from upslope.training.launch import resume as continue_run

    overrides = dict(parse_override(text) for text in settings or [])
    opened = Run.open(run)
    training = Recipe.load(opened.recipe_path, overrides).training
    console = Console()
    trained_s = sum(step.get("step_s", 0.0) for step in opened.history())
    limits = {"total_steps": training.steps, "max_train_s": training.max_train_s, "trained_s": trained_s}
    with LiveProgress(console, **limits) as progress:
        finished = continue_run(opened, trackers=[progress], overrides=overrides)
    reason = next(event["reason"] for event in reversed(list(finished.events("finished"))))
    console.print(f"finished, as {reason}: {finished.folder}", highlight=False, soft_wrap=True)
    if profile:
        show_profile(finished, console)
