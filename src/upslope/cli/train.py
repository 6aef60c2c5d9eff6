"""`upslope train RECIPE`: train as a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from upslope.cli.profile import ProfileOption, show_profile
from upslope.cli.progress import LiveProgress


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe in TOML; every setting has a default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; may be repeated.")
    ] = None,
    profile: ProfileOption = False,
) -> None:
    """Train a model as a recipe says."""
    from upslope.recipe import Recipe, parse_override
    from upslope.training.launch import launch

    overrides = dict(parse_override(text) for text in settings or [])
    resolved = Recipe.load(recipe, overrides) if recipe else Recipe.resolve({}, overrides)
    console = Console()
    training = resolved.training
    with LiveProgress(console, total_steps=training.steps, max_train_s=training.max_train_s) as progress:
        run = launch(resolved, trackers=[progress])
    reason = next(event["reason"] for event in reversed(list(run.events("finished"))))
    console.print(f"finished, as {reason}: {run.folder}", highlight=False, soft_wrap=True)
    console.print(f"the model is an ordinary Transformers folder: {run.model_path}", highlight=False, soft_wrap=True)
    if profile:
        show_profile(run, console)
