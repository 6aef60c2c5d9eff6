"""`upslope quickstart`: a real model learns a real task on a laptop's CPU, in minutes."""

from __future__ import annotations

import datetime
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from upslope.cli.progress import LiveProgress, duration

if TYPE_CHECKING:
    from upslope.evaluation.held_out import Gain
    from upslope.report.run import Run


def quickstart(
    folder: Annotated[Path | None, typer.Option(help="The run folder; a dated one under runs/ by default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; may be repeated.")
    ] = None,
) -> None:
    """Train SmolLM2-135M-Instruct with PPO on two-digit sums, and measure it before and after."""
    import tomllib

    from upslope.policies.loading import load_source
    from upslope.recipe import Recipe, parse_override
    from upslope.training.launch import launch

    console = Console()
    values = tomllib.loads(files("upslope.cli").joinpath("quickstart.toml").read_text(encoding="utf-8"))
    overrides = dict(parse_override(text) for text in settings or [])
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    values["run"]["folder"] = str(folder or Path("runs") / f"quickstart-{stamp}")
    recipe = Recipe.resolve(values, overrides)
    with console.status(f"fetching {recipe.model.name} (once)"):
        load_source(recipe.model.name)
    console.print(
        f"{recipe.model.name} learns {recipe.task.name} by {recipe.algorithm.preset}: first its held-out prompts are "
        f"measured, then it trains for {recipe.training.steps} steps or {duration(recipe.training.max_train_s or 0)} "
        "minutes, then they are measured again",
        highlight=False,
    )
    with LiveProgress(console, total_steps=recipe.training.steps, max_train_s=recipe.training.max_train_s) as progress:
        run = launch(recipe, trackers=[progress])
    report(console, run)


def report(console: Console, run: Run) -> None:
    """The table of before and after, where things lie, what to try next, and one line for scripts."""
    from upslope.evaluation.held_out import gain

    found = gain(list(run.events("evaluate")))
    assert found is not None, "a quickstart measures the same prompts before and after"
    table = Table("held-out prompts", "metric", "95% interval", box=None, pad_edge=False)
    for name, interval in (("before", found.before.interval), ("after", found.after.interval), ("gain", found.gain)):
        table.add_row(
            f"{name} ({found.before.num_prompts})",
            f"{interval.estimate:.3f}",
            f"[{interval.low:.3f}, {interval.high:.3f}]",
        )
    console.print()
    console.print(table)
    console.print(f"\nThe run lies in {run.folder}. Try next:", highlight=False)
    for command in _next_commands(run):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
    console.print(_summary(run, found), highlight=False, markup=False, soft_wrap=True)


def _next_commands(run: Run) -> list[str]:
    return [
        f"{_command('upslope')} generate {run.folder} '48 + 27' --system 'Answer with the number only.'",
        f"{_command('upslope')} quickstart --set preset=grpo",
        f"{_command('upslope')} report {run.folder}",
    ]


def _command(name: str) -> str:
    """How this environment's program is called from here: its name where it is on the path, else its path."""
    own = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found and Path(found).resolve() == own.resolve():
        return name
    return str(own.relative_to(Path.cwd())) if own.is_relative_to(Path.cwd()) else str(own)


def _summary(run: Run, found: Gain) -> str:
    train_s = next(event["train_s"] for event in run.events("finished"))
    before, after, gain = found.before.interval, found.after.interval, found.gain
    return (
        f"quickstart: before={before.estimate:.2f} after={after.estimate:.2f} "
        f"gain={gain.estimate:.2f} ci=[{gain.low:.2f}, {gain.high:.2f}] train_s={train_s:.0f}"
    )
