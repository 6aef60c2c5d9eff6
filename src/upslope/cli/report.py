"""`upslope report RUN`: everything about a run on one page."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from upslope.evaluation.intervals import Interval
    from upslope.report.run import Run


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are laid over each other.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; report.html in the (first) run folder by default.")
    ] = None,
) -> None:
    """Write one HTML page, complete in itself: curves, held-out results, recipe, and every logged rollout."""
    from upslope.report.html import page
    from upslope.report.run import Run, write_text

    opened = [Run.open(folder) for folder in runs]
    summaries = [summary(run) for run in opened]
    title = " · ".join([*(one["name"] for one in summaries), "upslope"])
    path = output or opened[0].folder / "report.html"
    write_text(path, page({"runs": summaries, "over_seeds": over_seeds(opened), "live": False}, title=title))
    Console().print(str(path), highlight=False, markup=False, soft_wrap=True)


def summary(run: Run) -> dict[str, Any]:
    """What the page shows of a run. Raises: RecordError when the run has logged nothing yet."""
    from upslope.errors import RecordError
    from upslope.report.feed import Feed

    update = Feed(run, held_out=held_out).poll()
    assert update is not None, "the first update says all"
    shown: dict[str, Any] = update["run"]
    if not (shown["steps"] or shown["rollouts"] or shown["notes"] or shown["held_out"]["curve"]):
        raise RecordError(f"{run.folder} has logged nothing yet, so there is nothing to report")
    return shown


def over_seeds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of runs by one recipe but for the seed and the folder: which they are, and their learning curve."""
    from upslope.evaluation.held_out import curve
    from upslope.evaluation.learning_curves import learning_curve

    alike: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(_but_for_the_seed(run), []).append(place)
    found = []
    for places in alike.values():
        curves = [curve(list(runs[place].events("evaluate"))) for place in places]
        if len(places) > 1 and set.intersection(*({one.step for one in measured} for measured in curves)):
            over = [[one.step, *_numbers(one.interval)] for one in learning_curve([curves])]
            found.append({"runs": places, "curve": over})
    return found


def _but_for_the_seed(run: Run) -> str:
    if not run.recipe_path.is_file():
        return str(run.folder)
    recipe = tomllib.loads(run.recipe_toml)
    recipe.pop("run", None)
    recipe.get("training", {}).pop("seed", None)
    return json.dumps(recipe, sort_keys=True, default=str)


def held_out(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The held-out results in JSON's types: the metric at every evaluation, and first against last."""
    from upslope.evaluation.held_out import curve, gain

    measured = curve(evaluations)
    gained = gain(evaluations)
    return {
        "curve": [[one.step, *_numbers(one.interval), one.num_prompts] for one in measured],
        "gain": None
        if gained is None
        else {
            "num_prompts": gained.before.num_prompts,
            "steps": [gained.before.step, gained.after.step],
            "before": _numbers(gained.before.interval),
            "after": _numbers(gained.after.interval),
            "gain": _numbers(gained.gain),
        },
    }


def _numbers(interval: Interval) -> list[float]:
    return [interval.estimate, interval.low, interval.high]
