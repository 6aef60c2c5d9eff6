"""`upslope tune RECIPE --space FILE`: the settings with the highest held-out metric, by whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def tune(
    recipe: Annotated[Path, typer.Argument(help="A recipe in TOML, as `upslope train` takes it.")],
    space: Annotated[
        list[str],
        typer.Option(help="What is searched: a TOML file, or a line of one, lr = {low=1e-6, high=1e-3, log=true}."),
    ],
    folder: Annotated[Path, typer.Option(help="Where trials and results go; a known one is continued.")] = Path(
        "runs/tuning"
    ),
    trials: Annotated[int, typer.Option(min=1, help="How many settings to try in all.")] = 20,
    sampler: Annotated[str, typer.Option(help="tree (ours), tpe, gp or random.")] = "tree",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes at work; more may join from other shells.")] = 1,
    prune: Annotated[bool, typer.Option(help="Give up trials that are shown to be worse.")] = True,
    bounds: Annotated[
        tuple[float, float], typer.Option(help="The least and the largest metric there is; pruning bets by them.")
    ] = (0.0, 1.0),
    error: Annotated[float, typer.Option(help="The chance that the best setting is pruned.")] = 0.05,
    held_back: Annotated[float, typer.Option(help="Share of held-out prompts that tuning does not see.")] = 1 / 3,
    seed: Annotated[int, typer.Option(help="Of the search; runs go by training.seed.")] = 0,
    keep_models: Annotated[bool, typer.Option(help="Keep the weights of all trials, not of the best alone.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting of the recipe.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one line of JSON, nothing else.")] = False,
) -> None:
    """Tune a recipe: try settings by whole runs, and judge the best on prompts that tuning never saw."""
    import json
    import signal

    from upslope.recipe import parse_override
    from upslope.tuning.space import written
    from upslope.tuning.tune import tune as find

    console, errors = (Console(highlight=False, soft_wrap=True, stderr=stderr) for stderr in (False, True))

    def say(line: str) -> None:
        (errors if as_json else console).print(line, markup=False)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # between two runs; within one the run watches for it
    try:
        found = find(
            recipe,
            space,
            folder=folder,
            trials=trials,
            sampler=sampler,
            seeds=seeds,
            workers=workers,
            prune=prune,
            bounds=bounds,
            error=error,
            held_back=held_back,
            seed=seed,
            keep_models=keep_models,
            settings=dict(parse_override(text) for text in settings or []),
            say=say,
        )
    except KeyboardInterrupt as stop:
        errors.print(str(stop) or "stopped", markup=False)
        raise typer.Exit(130) from None
    if as_json:
        console.print(json.dumps(found.as_dict()), markup=False)
        return
    console.print(f"\n{found}", markup=False)
    console.print(f"  {written(found.values)}", markup=False)
    for name, interval, count in found.estimates():
        figures = f"{interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
        console.print(f"  {name:<22} {figures} on {count} prompts", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"train it: upslope train {found.path}; the report: {folder / 'report.html'}", markup=False)
