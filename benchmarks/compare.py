"""The statistics of comparing models, on problems whose answer is known exactly: python benchmarks/compare.py.

Two policies over four symbols and three steps, at sixteen prompts, paid 0 or 1 by the whole sequence; evaluation/oracle
gives J of both. Every experiment is repeated 2,000 times at once. Figures: bias in standard errors, coverage, how often
two equal policies are told apart under continuous looking, power and mean stopping time, and the samples that unpaired
averaging needs for the standard error reached (savings). No peer: the figures are checked against their targets.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import RESULTS, machine

from upslope.evaluation.clustered import clustered_mean
from upslope.evaluation.control import without_luck
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, score_rewards, solve, tabular_logits
from upslope.evaluation.planning import prompts_to_detect
from upslope.evaluation.sequences import FIRST_LOOK, asymptotic_radius, betting_log_capital

SYMBOLS, STEPS, PROMPTS = 4, 3, 16
CONFIDENCE = 0.95
COLUMNS = ("case", "measured", "target", "reached")


@dataclass(frozen=True)
class Problem:
    """Logits [2, P, S, K] of policies a and b by prompt and state, rewards [P, K^T] of sequences, and J(b) - J(a).

    critic [2, P, S, K]: f(s, a), here Q of the policy half-way between a and b, already centred under a and under b.
    """

    logits: np.ndarray
    rewards: np.ndarray
    critic: np.ndarray
    truth: float


def problem(*, shift: float = 0.0, tilt: float = 0.0, seed: int = 0) -> Problem:
    """b is a, moved by `shift` at random and by `tilt` along a's own advantages, in its logits.

    A prompt is as hard as chance has it: the share of sequences that are paid is the sigmoid of a normal number.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (PROMPTS, num_prefixes(SYMBOLS, horizon=STEPS), SYMBOLS)
    a = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    paid = (2.0 * torch.randn(PROMPTS, 1, generator=generator, dtype=torch.float64)).sigmoid()
    rewards = (torch.rand(PROMPTS, SYMBOLS**STEPS, generator=generator, dtype=torch.float64) < paid).double()
    b = a + shift * noise + tilt * torch.stack([_solved(a[p], rewards[p])[1] for p in range(PROMPTS)])
    worth = [[_solved(table[p], rewards[p])[0] for p in range(PROMPTS)] for table in (a, b)]
    between = torch.stack([_solved((a[p] + b[p]) / 2, rewards[p])[1] for p in range(PROMPTS)])
    critic = torch.stack([between - (table.softmax(-1) * between).sum(-1, keepdim=True) for table in (a, b)])
    truth = float(np.mean(worth[1]) - np.mean(worth[0]))
    return Problem(torch.stack((a, b)).numpy(), rewards.numpy(), critic.numpy(), truth)


def _solved(table: torch.Tensor, rewards: torch.Tensor) -> tuple[float, torch.Tensor]:
    """J and Q [S, K] of one prompt's policy."""
    tree = enumerate_sequences(tabular_logits(table), horizon=STEPS, end=None)
    pay = rewards.tolist()
    exact = solve(tree, score_rewards(tree, lambda s: pay[(s[0] * SYMBOLS + s[1]) * SYMBOLS + s[2]]), gamma=1.0)
    return float(exact.objective), exact.action_values


@dataclass(frozen=True)
class Played:
    """Rewards of a and b [R, n] and their controls [R, n, 2]."""

    a: np.ndarray
    b: np.ndarray
    controls: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        return self.b - self.a


def play(world: Problem, repetitions: int, n: int, *, common: bool, seed: int, paired: bool = True) -> Played:
    """R experiments of n prompts drawn anew, answered once by a and by b by the Gumbel maximum.

    common: both take the same noise. paired: both answer the same prompts.
    """
    generator = np.random.default_rng(seed)
    shape = (repetitions, n)
    prompts = [generator.integers(PROMPTS, size=shape)] * 2
    if not paired:
        prompts[1] = generator.integers(PROMPTS, size=shape)
    sequences, controls = ([np.zeros(shape, dtype=kind) for _ in "ab"] for kind in (np.int64, float))
    for step in range(STEPS):
        noise = generator.gumbel(size=(*shape, SYMBOLS))
        for arm in range(2):
            if arm and not common:
                noise = generator.gumbel(size=(*shape, SYMBOLS))
            rows = num_prefixes(SYMBOLS, horizon=step) + sequences[arm]
            action = (world.logits[arm][prompts[arm], rows] + noise).argmax(-1)
            controls[arm] += world.critic[arm][prompts[arm], rows, action]
            sequences[arm] = sequences[arm] * SYMBOLS + action
    a, b = (world.rewards[prompts[arm], sequences[arm]] for arm in range(2))
    return Played(a, b, np.stack(controls, -1))


def running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors [R, n] after every value."""
    times = np.arange(1, values.shape[-1] + 1)
    means = values.cumsum(-1) / times
    squares = (values**2).cumsum(-1) - times * means**2
    return means, np.sqrt(np.maximum(squares, 0.0) / np.maximum(times - 1, 1) / times)


def bias_and_coverage(repetitions: int, n: int) -> list[dict[str, Any]]:
    """|mean error| in standard errors (3 at most) and coverage of the t interval, by design."""
    world, cases = problem(shift=0.8), []
    for name, common, control in DESIGNS:
        played = play(world, repetitions, n, common=common, seed=1)
        values = without_luck(played.differences, played.controls) if control else played.differences
        found = clustered_mean(values)
        errors = found.estimate - world.truth
        low, high = found.bounds(CONFIDENCE)
        covered = float(((low <= world.truth) & (world.truth <= high)).mean())
        bias = float(abs(errors.mean()) / (errors.std() / math.sqrt(repetitions)))
        cases.append(case(f"|bias|, standard errors: {name}", bias, "<= 3", bias <= 3))
        cases.append(case(f"coverage of t, n = {n}: {name}", covered, ".93 to .97", 0.93 <= covered <= 0.97))
    return cases


DESIGNS = (
    ("pairs", False, False),
    ("pairs, control", False, True),
    ("pairs, common numbers", True, False),
    ("all", True, True),
)


def savings(repetitions: int, n: int) -> list[dict[str, Any]]:
    """Variance of unpaired averaging over that of each design, same number of samples."""
    world = problem(shift=0.8)
    plain = play(world, repetitions, n, common=False, seed=2, paired=False).differences.mean(-1).var()
    cases = []
    for name, common, control in DESIGNS:
        played = play(world, repetitions, n, common=common, seed=3)
        values = without_luck(played.differences, played.controls) if control else played.differences
        saved = float(plain / values.mean(-1).var())
        cases.append(case(f"samples saved over unpaired: {name}", saved, "> 1", saved > 1))
    return cases


def simultaneous(repetitions: int, n: int) -> list[dict[str, Any]]:
    """Coverage at all sample sizes at once, and A/A rejections under continuous looking."""
    world, equal = problem(shift=0.8), problem()
    radius = asymptotic_radius(np.arange(1, n + 1), confidence=CONFIDENCE, tuned_for=n)
    cases = []
    for setting, common in ((world, True), (equal, False)):
        values = play(setting, repetitions, n, common=common, seed=4).differences
        means, se = running(values)
        inside = (np.abs(means - setting.truth) <= radius * se)[:, FIRST_LOOK - 1 :].all(-1)
        capital = betting_log_capital((values + 1.0) / 2.0, (setting.truth + 1.0) / 2.0, confidence=CONFIDENCE)
        wealth = (capital < math.log(1.0 / (1.0 - CONFIDENCE))).all(-1)
        for kind, held in (("asymptotic", inside), ("betting", wealth)):
            covered = float(held.mean())
            if setting is equal:
                found = case(f"A/A rejected by n = {n}: {kind}", 1.0 - covered, "<= .06", 1.0 - covered <= 0.06)
            else:
                found = case(f"simultaneous coverage to n = {n}: {kind}", covered, ">= .94", covered >= 0.94)
            cases.append(found)
    return cases


def stopping(repetitions: int, tilt: float = 0.6) -> list[dict[str, Any]]:
    """Power and mean stopping time of the asymptotic sequence, allowed twice the prompts of the fixed design."""
    world, cases = problem(shift=0.3, tilt=tilt), []
    for name, common in (("pairs", False), ("pairs, common numbers", True)):
        pilot = play(world, 1, 100_000, common=common, seed=6).differences
        fixed = prompts_to_detect(abs(world.truth), sd=float(pilot.std()), power=0.8)
        values = play(world, repetitions, 2 * fixed, common=common, seed=7).differences
        means, se = running(values)
        radius = asymptotic_radius(np.arange(1, 2 * fixed + 1), confidence=CONFIDENCE, tuned_for=fixed)
        out = np.sign(world.truth) * means > radius * se
        out[:, : FIRST_LOOK - 1] = False
        stopped = np.where(out.any(-1), out.argmax(-1) + 1, 2 * fixed)
        power, mean = float(out.any(-1).mean()), float(stopped.mean() / fixed)
        cases.append(case(f"power, effect {world.truth:.3f}: {name}", power, ">= .8", power >= 0.8))
        cases.append(case(f"mean stopping n / fixed n ({fixed}): {name}", mean, "<= 1.5", mean <= 1.5))
    return cases


def case(name: str, measured: float, target: str, reached: bool | None) -> dict[str, Any]:
    """A figure with its target, in words, and whether that was reached; None where there is none."""
    return {"name": name, "measured": measured, "target": target, "reached": None if reached is None else bool(reached)}


def table(cases: list[dict[str, Any]]) -> str:
    """The cases as a Markdown table."""
    said = {True: "yes", False: "no", None: "-"}
    rows = [(c["name"], f"{c['measured']:.3f}", c["target"] or "-", said[c["reached"]]) for c in cases]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write compare.json to")
    options = parser.parse_args()
    count, cases, started = options.repetitions, [], time.perf_counter()
    parts: tuple[Callable[[], list[dict[str, Any]]], ...] = (
        partial(bias_and_coverage, count, 200),
        partial(savings, count, 200),
        partial(simultaneous, count, 2_000),
        partial(stopping, count),
    )
    for part in parts:
        cases += part()
        print(f"{time.perf_counter() - started:.0f} s", flush=True)
    document = {"benchmark": "compare", "measured": datetime.date.today().isoformat(), "machine": machine()}
    options.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**document, "repetitions": count, "cases": cases}, indent=1)
    (options.results / "compare.json").write_text(text + "\n", encoding="utf-8")
    print(table(cases))


if __name__ == "__main__":
    main()
