"""What comparing and choosing cost on real models: python benchmarks/fine_tunes.py.

SmolLM2-135M-Instruct trained on two-digit sums (examples/grpo_arithmetic.toml) for 30, 60 and 70 steps: which is best?
Every model answers one large pool of held-out sums once, with random numbers in common; prompts are then drawn from the
pool anew, 50 times, which costs nothing. Figures: the tokens that pairs need for the half-width that plain averaging
(each model on prompts of its own, as many as half the pool) reaches, how often `select` chooses the pool's winner, and
what `compare` takes beside generating. --folder keeps runs and pool, and takes up what is there.
"""

from __future__ import annotations

import argparse
import bisect
import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from compare import case, table
from learning import arguments, folder_of, trained
from results import machine

import upslope
from upslope.evaluation import student_t
from upslope.evaluation.paired import Pairs, difference
from upslope.evaluation.select import Race
from upslope.evaluation.trial import Trial

STEPS = (30, 60, 70)
POOL, PIECE, RESAMPLES = 3_000, 250, 50
COMPARED, LOOK_EVERY = 500, 100


@dataclass(frozen=True)
class Pool:
    """rewards [K, n] of K models on the same prompts, with common numbers, and their mean tokens an answer [K]."""

    rewards: np.ndarray
    tokens: np.ndarray

    @property
    def order(self) -> list[int]:
        """The models, best first."""
        return [int(place) for place in np.argsort(-self.rewards.mean(1), kind="stable")]


def pool_of(runs: Sequence[upslope.Run], folder: Path, size: int) -> Pool:
    """The pool, from the folder where it lies there, else sampled and left there; a piece at a time."""
    path = folder / f"pool-{size}.json"
    held: dict[str, Any] = {"asked": 0, "rewards": [[] for _ in runs], "tokens": [0] * len(runs)}
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
    if held["asked"] < size:
        trial = Trial(runs, None, temperature=1.0, num_prompts=size)
        prompts = [prompt for group in trial.groups for prompt in group]
        with trial.scorer() as scorer:
            for start in range(held["asked"], len(prompts), PIECE):
                answers, before = trial.answers(scorer), [arm.tokens for arm in trial.arms]
                answers.answer(prompts[start : start + PIECE])
                for place, rewards in enumerate(answers.rewards):
                    held["rewards"][place] += [row[0] for row in rewards]
                    held["tokens"][place] += trial.arms[place].tokens - before[place]
                held["asked"] = min(start + PIECE, len(prompts))
                path.write_text(json.dumps(held), encoding="utf-8")
                print(f"  pool: {held['asked']} of {len(prompts)} sums", flush=True)
    rewards = np.array(held["rewards"])
    return Pool(rewards, np.array(held["tokens"]) / rewards.shape[1])


def tokens_for_the_same_width(pool: Pool, generator: np.random.Generator) -> float:
    """Tokens that pairs of the best two need, over those of plain averaging, for a t interval as narrow.

    Plain averaging takes half the pool's number of prompts for each model, drawn apart; pairs are taken ten at a time.
    """
    best, second = pool.rewards[pool.order[:2]]
    n = pool.rewards.shape[1] // 2
    apart = [rewards[generator.integers(len(rewards), size=n)] for rewards in (best, second)]
    wanted = student_t.quantile(0.975, 2.0 * (n - 1)) * math.sqrt(sum(values.var(ddof=1) / n for values in apart))
    drawn = generator.integers(len(best), size=4 * n)

    def narrow(count: int) -> bool:
        rows = drawn[:count]
        interval = difference(Pairs(second[rows, None], best[rows, None])).interval
        return (interval.high - interval.low) / 2 <= wanted

    counts = range(10, 4 * n, 10)
    place = bisect.bisect_left(counts, True, key=narrow)
    return counts[min(place, len(counts) - 1)] / n  # both answer so many prompts instead of n: tokens go alike


@dataclass
class Drawn:
    """Answers of all models to prompts drawn from the pool, as a race asks for them."""

    pool: Pool
    rewards: list[list[list[float]]] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arms = [SimpleNamespace(name=str(place)) for place in range(len(self.pool.rewards))]
        self.rewards = [[] for _ in self.arms]

    @property
    def num_clusters(self) -> int:
        return len(self.prompts)

    def answer(self, prompts: Sequence[int], arms: Sequence[int]) -> None:
        self.prompts += prompts
        for arm in arms:
            self.rewards[arm] += self.pool.rewards[arm, list(prompts), None].tolist()

    def pairs(self, a: int, b: int) -> Pairs:
        return Pairs(np.array(self.rewards[a]), np.array(self.rewards[b]))


def chosen(pool: Pool, generator: np.random.Generator) -> tuple[bool, float]:
    """Whether a race over a resample of the pool ends with its winner in front, and the share of all tokens it took."""
    size = pool.rewards.shape[1]
    drawn = generator.integers(size, size=size).tolist()
    race = Race(Drawn(pool), confidence=0.95, margin=None, tuned_for=size)  # type: ignore[arg-type]
    for start in range(0, size, LOOK_EVERY):
        race.look(drawn[start : start + LOOK_EVERY])
        if race.over:
            break
    answered = np.array([entrant.num_prompts for entrant in race.entrants()])
    return race.leader == pool.order[0], float(answered @ pool.tokens / (size * pool.tokens.sum()))


def figures(pool: Pool, runs: Sequence[upslope.Run], *, compared: int) -> list[dict[str, Any]]:
    """All of them, with their targets."""
    means, generator = pool.rewards.mean(1), np.random.default_rng(0)
    first, second, *_ = pool.order
    shares = [tokens_for_the_same_width(pool, generator) for _ in range(RESAMPLES)]
    found, took = zip(*(chosen(pool, generator) for _ in range(RESAMPLES)), strict=True)
    gap = float(means[first] - means[second])
    timed = upslope.compare(
        runs[second], runs[first], temperature=1.0, num_prompts=compared, look_every=max(30, compared // 5)
    )
    added, noise = timed.added_s / timed.generating_s, timed.noise_s / timed.generating_s
    share, right = float(np.median(shares)), float(np.mean(found))
    return [
        case("best two apart by", gap, "<= .05", gap <= 0.05),
        case("tokens of pairs for plain averaging's half-width, median", share, "<= .5", share <= 0.5),
        case("the same, largest of 50", max(shares), "", None),
        case("large-sample winner chosen, of 50 resamples", right, ">= .9", right >= 0.9),
        case("tokens the race took, share of all", float(np.mean(took)), "", None),
        case("time compare adds to generating", added, "<= .1", added <= 0.1),
        case("time of common random numbers, share of generating", noise, "", None),
    ]


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__, seeds=1)
    options = parser.parse_args()
    folder, limit, started = folder_of(options), options.limit, time.perf_counter()
    size = POOL if limit is None else max(limit, 40)
    runs = [
        trained(
            "grpo_arithmetic.toml",
            folder / f"{steps}-steps",
            seed=0,
            limit=None if limit is None else max(1, limit * steps // 70),
            **{"training.steps": steps, "task.options.num_eval": POOL},
        )
        for steps in STEPS
    ]
    pool = pool_of(runs, folder, size)
    cases = figures(pool, runs, compared=COMPARED if limit is None else 30)
    means = ", ".join(f"{steps} steps {mean:.3f}" for steps, mean in zip(STEPS, pool.rewards.mean(1), strict=True))
    notes = [f"Right answers at temperature 1 on {size} held-out sums: {means}"]
    document = {
        "benchmark": "fine_tunes",
        "measured": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(),
        "notes": notes,
        "cases": cases,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "fine_tunes.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{notes[0]}.\n\n{table(cases)}\n\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
