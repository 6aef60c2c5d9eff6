"""Our tree-search sampler beside Optuna's TPE on three surfaces whose least value is known: python benchmarks/tune.py.

Branin (2 dimensions), Hartmann-6 (6), and a conditional surface: one of three surfaces is chosen, each with parameters
of its own, and the least value lies in the one that looks worst at random. Both samplers run through Optuna, 50 trials
from each of 20 seeds. Asked for: a median of the best values within 5% of TPE's. The table shows how far the medians
are from the least value there is.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from results import RESULTS, plain, report

from upslope.tuning.samplers import make_sampler, suggest
from upslope.tuning.space import Choice, Parameter, Range, Space

SEEDS, TRIALS, MARGIN = 20, 50, 0.05
UNIT = Range(0.0, 1.0)
Values = Mapping[str, Any]

WEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
NARROWNESS = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
CENTRES = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


@dataclass(frozen=True)
class Surface:
    """A function to make small, the space it is defined on, and its least value."""

    name: str
    space: Space
    value: Callable[[Values], float]
    least: float


def branin(values: Values) -> float:
    """Least value 0.397887, at three points."""
    x, y = 15.0 * values["x"] - 5.0, 15.0 * values["y"]
    curve = y - 5.1 / (4.0 * math.pi**2) * x**2 + 5.0 / math.pi * x - 6.0
    return curve**2 + 10.0 * (1.0 - 1.0 / (8.0 * math.pi)) * math.cos(x) + 10.0


def hartmann(values: Values) -> float:
    """Least value -3.32237, with five further local minima."""
    point = np.array([values[f"x{axis}"] for axis in range(6)])
    return -float(WEIGHTS @ np.exp(-(NARROWNESS * (point - CENTRES) ** 2).sum(1)))


def conditional(values: Values) -> float:
    """Least value 0.2, in a bowl of four dimensions; a line that begins at 1 and Branin lie beside it."""
    if values["kind"] == "branin":
        return branin(values)
    if values["kind"] == "line":
        return 1.0 + abs(values["z"] - 0.7)
    return 0.2 + 10.0 * sum((values[f"b{axis}"] - 0.2 - 0.15 * axis) ** 2 for axis in range(4))


def cube(*names: str, **when: tuple[str, ...]) -> tuple[Parameter, ...]:
    """Parameters from 0 to 1, under conditions where there are any."""
    return tuple(Parameter(name, UNIT, when) for name in names)


SURFACES = (
    Surface("Branin", Space(cube("x", "y")), branin, 0.397887),
    Surface("Hartmann-6", Space(cube(*(f"x{axis}" for axis in range(6)))), hartmann, -3.32237),
    Surface(
        "conditional",
        Space(
            (
                Parameter("kind", Choice(("branin", "line", "bowl"))),
                *cube("x", "y", kind=("branin",)),
                *cube("z", kind=("line",)),
                *cube("b0", "b1", "b2", "b3", kind=("bowl",)),
            )
        ),
        conditional,
        0.2,
    ),
)


def best_value(surface: Surface, sampler: str, *, trials: int, seed: int) -> float:
    """The least value found by so many trials."""
    study = optuna.create_study(sampler=make_sampler(sampler, surface.space, seed=seed))
    study.optimize(
        lambda trial: surface.value(surface.space.values(lambda parameter: suggest(trial, parameter))), n_trials=trials
    )
    return float(study.best_value)


def measured(surface: Surface, *, seeds: int, trials: int) -> tuple[dict[str, Any], str]:
    """A case of the results, and the medians with their quartiles in words."""
    found = {
        name: [best_value(surface, name, trials=trials, seed=seed) for seed in range(seeds)] for name in ("tree", "tpe")
    }
    tree, tpe = (statistics.median(values) for values in found.values())
    reached = tree <= tpe + MARGIN * abs(tpe)
    quartiles = {name: np.quantile(values, (0.25, 0.75)) for name, values in found.items()}
    words = ", ".join(
        f"{name} {statistics.median(values):.4f} ({quartiles[name][0]:.4f} to {quartiles[name][1]:.4f})"
        for name, values in found.items()
    )
    case = plain(surface.name, tree - surface.least, tpe - surface.least, unit="to the least value", peer_name="TPE")
    return (
        case,
        f"{surface.name}, median best (quartiles): {words}; within 5% of TPE or better: {'yes' if reached else 'no'}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write tune.json to")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    cases, notes = [], [f"{options.seeds} seeds, {options.trials} trials each, Optuna {optuna.__version__}"]
    for surface in SURFACES:
        case, words = measured(surface, seeds=options.seeds, trials=options.trials)
        cases.append(case)
        notes.append(words)
        print(words, flush=True)
    report("tune", cases, results=options.results, notes=notes)


if __name__ == "__main__":
    main()
