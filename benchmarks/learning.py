"""What the benchmarks of learning share: recipes of examples/ run seed by seed, and paired figures of what they learnt.

A figure is of a recipe that a user can copy: a benchmark changes its seed, its run folder, the model that it starts
from where that is another run's, and with --limit its length.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import FOLDER
from results import Estimate
from worker import versions

import upslope
from upslope.records import Rollout
from upslope.report.run import Run
from upslope.training.launch import launch, resume

EXAMPLES = FOLDER.parent / "examples"
Statistic = Callable[[np.ndarray], np.ndarray]
RESAMPLES = 1_000


def arguments(doc: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """The options that every benchmark of learning takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="runs of everything, by the seeds 0, 1, ...")
    parser.add_argument("--limit", type=int, help="steps of a run and held-out rows, to see that all of it works")
    parser.add_argument("--folder", type=Path, help="where the runs lie; what is finished there is not run again")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="the folder to write NAME.json to")
    return parser


def folder_of(options: argparse.Namespace) -> Path:
    """Where the runs of this benchmark lie: a new folder unless one is named."""
    return Path(options.folder or tempfile.mkdtemp(prefix="upslope-"))


def trained(recipe: str, folder: Path, *, seed: int, limit: int | None, **settings: Any) -> Run:
    """The finished run of a recipe of examples/ in a folder; begun, taken up or only opened, as the folder has it."""
    if (folder / "model").is_dir():
        return upslope.Run.open(folder)
    if folder.exists():
        return resume(folder)
    changed = {"training.seed": seed, "run.folder": str(folder), "run.trackers": [], **settings}
    if limit is not None:
        changed |= {"training.steps": limit, "evaluation.every_steps": limit, "evaluation.num_prompts": limit}
    print(f"  {folder.name}: {recipe}, seed {seed}", flush=True)
    return launch(upslope.Recipe.load(EXAMPLES / recipe, changed))


def answers(run: Run, *, limit: int | None, beams: int | None = None) -> Sequence[Rollout]:
    """Rollouts of a run's final model on every held-out prompt of its data, greedily or by beams."""
    return upslope.evaluate(run, num_prompts=limit, options={"num_eval": None}, beams=beams).measurement.rollouts


def paired(before: np.ndarray, after: np.ndarray, statistic: Statistic) -> tuple[Estimate, Estimate, Estimate]:
    """A statistic before and after, and its gain: means over seeds, with 95% percentile intervals.

    before, after [S, n, ...]: what is counted of n held-out rows under S seeds; statistic maps sums over rows [m, ...]
    to [m]. Each of 1,000 resamples draws rows and seeds anew, the same for both.
    Source: Efron & Tibshirani 1993, ch. 13.
    """
    random, (seeds, rows) = np.random.default_rng(0), before.shape[:2]
    weights = np.concatenate([np.ones((1, rows)), random.multinomial(rows, [1 / rows] * rows, size=RESAMPLES)])
    drawn = np.concatenate([np.arange(seeds)[None], random.integers(seeds, size=(RESAMPLES, seeds))])
    found = []
    for counts in (before, after):
        by_seed = np.stack([statistic(np.tensordot(weights, counts[seed], axes=1)) for seed in range(seeds)], axis=1)
        found.append(np.take_along_axis(by_seed, drawn, axis=1).mean(1))
    return _estimate(found[0]), _estimate(found[1]), _estimate(found[1] - found[0])


def _estimate(values: np.ndarray) -> Estimate:
    """The first value, with the interval of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean [m] over the classes that there are of F1, from counts [m, K, 3] (found and right, found, there)."""
    both = counts[..., 1] + counts[..., 2]
    scores = np.divide(2 * counts[..., 0], both, out=np.zeros(both.shape), where=both > 0)
    mean: np.ndarray = scores.sum(-1) / np.maximum(1, (both > 0).sum(-1))
    return mean


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 [m] of all classes together, from counts [m, K, 3]."""
    return macro_f1(counts.sum(-2, keepdims=True))


def by_seed(before: np.ndarray, after: np.ndarray, statistic: Statistic, *, digits: int = 3) -> str:
    """The figures of each seed, before -> after."""
    pairs = zip(statistic(before.sum(1)), statistic(after.sum(1)), strict=True)
    return ", ".join(f"{one:.{digits}f} -> {other:.{digits}f}" for one, other in pairs)


def minutes(*runs: Run) -> str:
    """How long the runs trained, and on what."""
    spent = sum(next(iter(run.events("finished")))["train_s"] for run in runs) / 60
    return f"{spent:.0f} minutes of training; " + ", ".join(f"{name} {version}" for name, version in versions().items())
