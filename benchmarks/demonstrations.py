"""What 64 demonstrations of a format teach: python benchmarks/demonstrations.py [--seeds 5].

The 260k-weight model is shown 64 little stories of one form ("Lily has a ball. Lily is happy. The end."). By every
seed, from the same weights and on the same demonstrations in the same order: supervised training; inverse reinforcement
learning (IQ-Learn) for as many steps; and from its policy GRPO on the reward that it recovered, which holds a constant
for each prompt and so asks for a baseline by group. Measured on 64 prompts with names that no demonstration has: how
well the recovered reward tells demonstrations from what the starting model writes at that length, and how many of 8
samples a prompt keep the form. Settings were chosen on seed 100. Needs UPSLOPE_DATA, the folder that holds
models/stories260k.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
from learning import Statistic, arguments, folder_of, minutes, paired
from results import Estimate, learnt, report

from upslope import Recipe, Task, train
from upslope.engines.choice import engine_for
from upslope.evaluation.sources import policy_to_sample, sampling_of
from upslope.report.run import Run

NAMES = ("Lily", "Tom", "Ben", "Mia", "Sam", "Anna", "Max", "Sue", "Tim", "Lucy", "Jack", "Amy")
OTHERS = ("Jane", "Bob", "Sara", "Fin", "Emma", "Leo")
TOYS = ("ball", "doll", "car", "hat", "dog", "cat", "book", "kite", "cake", "boat")
MOODS = ("happy", "sad", "big", "kind", "shy", "mad")
FORM = re.compile(r"(\w+) has a \w+\. \1 is \w+\. The end\.")
COUNT, SAMPLES = 64, 8
QUIET = {"trackers": [], "checkpoint_every_steps": "none", "samples_per_step": 0}
GIVEN = {"steps": 60, "prompts_per_step": 16, "lr": 1e-3}
RL = {"preset": "grpo", "group_size": 8, "steps": 20, "prompts_per_step": 16, "lr": 2e-4, "max_new_tokens": 32}


def demonstrations(names: tuple[str, ...], *, count: int, seed: str) -> list[dict[str, str]]:
    """So many prompts with a story of the form."""
    draw, found = Random(seed), []
    for _ in range(count):
        name, toy, mood = draw.choice(names), draw.choice(TOYS), draw.choice(MOODS)
        story = f"{name} has a {toy}. {name} is {mood}. The end."
        found.append({"prompt": f"This is a story of {name}.", "completion": story})
    return found


def runs_of(folder: Path, model: str, *, seed: int, limit: int | None) -> dict[str, Run]:
    """The finished runs of a seed: supervised, inverse, GRPO from that; one that lies in the folder is only opened."""
    task = Task(
        prompts=demonstrations(NAMES, count=COUNT, seed=f"{seed}"),
        eval_prompts=demonstrations(OTHERS, count=COUNT, seed=f"{seed}/held out"),
        name="format",
    )
    inverse = folder / f"inverse-{seed}"
    reward = {"function": "inverse_q", "model": str(inverse)}
    given, rl = dict(GIVEN), dict(RL)
    if limit is not None:
        given["steps"] = rl["steps"] = limit
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "supervised": (model, {"method": "supervised", **given}),
        "inverse": (
            model,
            {"method": "inverse", "reward_price": 0.01, "every_steps": given["steps"], "max_new_tokens": 24, **given},
        ),
        "grpo": (str(inverse / "model"), {"reward.functions": [reward], **rl}),
    }
    runs = {}
    for name, (start, settings) in methods.items():
        path = folder / f"{name}-{seed}"
        if not (path / "model").is_dir():
            print(f"  {path.name}", flush=True)
            train(model=start, task=task, run=path, **settings, **QUIET, seed=seed)
        runs[name] = Run.open(path)
    return runs


def kept(model: str, run: Run, *, seed: int) -> list[float]:
    """The share of samples that keep the form and end, by held-out prompt."""
    recipe = Recipe.load(run.recipe_path)
    policy = policy_to_sample(model, recipe, labels=(), seed=0)
    engine = engine_for(policy, recipe.engine.model_dump())
    engine.load(policy, version=0)
    held_out = Task(prompts=demonstrations(OTHERS, count=COUNT, seed=f"{seed}/held out")).prompts
    prompts = [policy.encode(prompt) for prompt in held_out]
    rows = engine.sample(prompts, group_size=SAMPLES, sampling=sampling_of(recipe), seed=10**6 + seed)
    right = [float(row.terminated and FORM.fullmatch(row.text.strip()) is not None) for row in rows]
    return [fmean(right[i : i + SAMPLES]) for i in range(0, len(right), SAMPLES)]


def over_seeds(values: list[float]) -> Estimate:
    """Mean, least and largest."""
    return fmean(values), min(values), max(values)


def main() -> None:
    options = arguments(__doc__, seeds=5).parse_args()
    folder, model = folder_of(options), str(Path(os.environ["UPSLOPE_DATA"]) / "models" / "stories260k")
    runs, rates, areas = [], [], []
    for seed in range(options.seeds):
        own = runs_of(folder, model, seed=seed, limit=options.limit)
        runs += own.values()
        rates.append([kept(str(run.model_path), own["grpo"], seed=seed) for run in own.values()])
        areas.append([event["auc_recovered"] for event in own["inverse"].events("reward_report")])
        shown = ", ".join(f"{name} {fmean(rate):.3f}" for name, rate in zip(own, rates[-1], strict=True))
        print(f"seed {seed}: AUC {areas[-1][0]:.3f} -> {areas[-1][-1]:.3f}; format kept: {shown}", flush=True)
    supervised, inverse, grpo = np.swapaxes(np.array(rates), 0, 1)
    mean: Statistic = lambda sums: sums / COUNT  # noqa: E731
    before, after = ([area[place] for area in areas] for place in (0, -1))
    gains = [last - first for first, last in zip(before, after, strict=True)]
    cases = [
        learnt(
            "AUC of the recovered reward, demonstrations against samples of the start (mean and range over seeds)",
            *map(over_seeds, (before, after, gains)),
            names=("starting model", "IQ-Learn"),
            unit="AUC",
            wanted=">= 0.9",
        ),
        learnt(
            f"format kept by samples, mean of {options.seeds} seeds",
            *paired(supervised, grpo, mean),
            names=("supervised", "IQ-Learn, then GRPO"),
            unit="share",
            wanted="gain not below 0",
        ),
    ]
    every = zip(("supervised", "IQ-Learn", "and GRPO"), (supervised, inverse, grpo), strict=True)
    notes = [f"Format kept by seed, {name}: " + ", ".join(f"{rate:.3f}" for rate in own.mean(1)) for name, own in every]
    report("demonstrations", cases, results=options.results, notes=[*notes, minutes(*runs)])


if __name__ == "__main__":
    main()
