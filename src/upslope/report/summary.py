"""All that a page shows of one run, in JSON's types."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from upslope.errors import CheckpointError
from upslope.report.curves import metrics_of, non_finite, over_optimisation
from upslope.report.inspector import inspect
from upslope.report.run import Run

Event = Mapping[str, Any]
# of events of kind "evaluate": {"curve": [[step, mean, low, high, prompts]], "gain": {before, after, gain} or None}
HeldOut = Callable[[Sequence[Event]], Mapping[str, Any]]

_SHOWN_ELSEWHERE = frozenset({"train", "evaluate", "alarm", "checkpoint", "calibration"})
_NO_DETAIL = frozenset({"time", "kind", "step", "recipe"})


def summarise(
    run: Run,
    events: Sequence[Event],
    samples: Sequence[Event],
    *,
    held_out: HeldOut,
    damaged: int,
    after: int = -1,
) -> dict[str, Any]:
    """The run as its standing events and samples tell it: curves, held-out results, reliability of a reward model,
    alarms, notes, recipe, rollouts.

    after: leave out the columns of steps up to this one, for a page that has them; samples are taken as given.
    """
    newest = {event["step"]: event for event in events if event["kind"] == "train"}
    steps = [newest[step] for step in sorted(newest)]
    fresh = [step for step in steps if step["step"] > after]
    rollouts, refused = inspect(samples)
    recipe = run.recipe_toml if run.recipe_path.is_file() else ""
    return {
        "name": run.folder.resolve().name,
        "folder": str(run.folder),
        "state": state(run),
        "recipe": recipe,
        **_plan(recipe, run),
        "steps": [step["step"] for step in fresh],
        "metrics": metrics_of(fresh),
        "over_optimisation": over_optimisation(steps),
        "held_out": held_out([event for event in events if event["kind"] == "evaluate"]),
        "reliability": next((event for event in reversed(events) if event["kind"] == "calibration"), None),
        "alarms": alarms(events),
        "notes": notes(events),
        "rollouts": rollouts,
        "damaged": damaged + refused,
    }


def state(run: Run) -> str:
    """ "training by process 7 on host", "finished", "stopped", or "not started"."""
    owner = run.holder()
    if owner is not None:
        return f"training by process {owner.pid} on {owner.host}"
    if (run.model_path / "config.json").is_file():
        return "finished"
    return "stopped" if run.recipe_path.is_file() else "not started"


def alarms(events: Sequence[Event]) -> list[dict[str, Any]]:
    """What training warned of: name, text, step of its beginning and of its end (None where it has not ended)."""
    found: list[dict[str, Any]] = []
    open_ones: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["kind"] != "alarm":
            continue
        name = str(event.get("name", ""))
        if event.get("state") == "end":
            if name in open_ones:
                open_ones.pop(name)["end"] = event["step"]
        elif name not in open_ones:
            open_ones[name] = {"name": name, "text": str(event.get("text", "")), "begin": event["step"], "end": None}
            found.append(open_ones[name])
    return found


def notes(events: Sequence[Event]) -> list[list[Any]]:
    """[step, what, details] of everything else that happened: resumed, interrupted, a step that could not be taken."""
    found: list[list[Any]] = []
    for event in events:
        if event["kind"] == "train":
            if "problem" in event:
                found.append([event["step"], "problem", str(event["problem"])])
            found += [[step, "not finite", f"{name} is {value}"] for step, name, value in non_finite([event])]
        elif event["kind"] not in _SHOWN_ELSEWHERE:
            found.append([event["step"], event["kind"].replace("_", " "), _details(event)])
    return found


def _details(event: Event) -> str:
    shown = {name: value for name, value in event.items() if name not in _NO_DETAIL}
    return ", ".join(f"{name} = {v:.4g}" if isinstance(v, float) else f"{name} = {v}" for name, v in shown.items())


def _plan(recipe: str, run: Run) -> dict[str, Any]:
    """What the recipe sets out to do, in a line or two.

    Raises: CheckpointError when the run's recipe is no TOML.
    """
    try:
        values = tomllib.loads(recipe)
    except tomllib.TOMLDecodeError as error:
        raise CheckpointError(f"{run.recipe_path} is not TOML: {error}; is {run.folder} a run folder?") from error
    method = values.get("method", "policy_gradient")
    names = {"model": ("model", "name"), "task": ("task", "name"), "total_steps": ("training", "steps")}
    plan = {name: _setting(values, *path) for name, path in names.items()}
    return plan | {"method": _setting(values, "algorithm", "preset") if method == "policy_gradient" else str(method)}


def _setting(values: Mapping[str, Any], section: str, name: str) -> Any:
    found = values.get(section)
    value = found.get(name) if isinstance(found, Mapping) else None
    return value if isinstance(value, str | int) else None
