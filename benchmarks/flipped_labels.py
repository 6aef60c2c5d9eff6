"""Robust DPO under flipped labels: python benchmarks/flipped_labels.py [--seeds 5].

2,000 pairs of stories that the 260k-weight model wrote itself are labelled by a known reward, the number of full stops
in 32 tokens; 30% of the labels are then flipped. DPO on the clean labels, DPO on the flipped ones and robust DPO on the
flipped ones start from the same weights, at the same settings (chosen on another seed), and see each pair once. What
each gains is the rise of the reward over 1,000 fresh samples, drawn with the same noise. Needs UPSLOPE_DATA, the folder
that holds models/stories260k.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from learning import arguments, folder_of, minutes, paired
from results import learnt, report

from upslope import Task, train
from upslope.engines.choice import engine_for
from upslope.policies.loading import load_policy
from upslope.policies.sampling import Sampling
from upslope.recipe import EngineSettings
from upslope.records import Prompt
from upslope.report.run import Run

STARTS = ("Once upon a time", "One day", "There was a", "Tom and Lily", "The little", "A big", "It was a", "Ben had a")
PAIRS, SAMPLES, FLIP_RATE = 2000, 1000, 0.3
SAMPLING = Sampling(1.0, None, None, 32, ())
PER_STEP = 32
SETTINGS = {"beta": 0.5, "lr": 3e-4, "prompts_per_step": PER_STEP}
METHODS = {
    "clean": ("dpo", 0.0, 0.0),
    "flipped": ("dpo", FLIP_RATE, 0.0),
    "robust": ("robust_dpo", FLIP_RATE, FLIP_RATE),
}
"""Name -> loss, share of labels that are flipped, flip_rate that the loss assumes."""


def reward(text: str) -> float:
    """How many sentences the text ends."""
    return float(text.count("."))


def written(model: str, *, count: int, group_size: int, seed: int) -> list[list[tuple[str, str]]]:
    """(prompt, text) of group_size samples of each of count prompts."""
    held: dict[str, Any] = {"critic": None, "keep_reference": False, "lora": None, "gradient_checkpointing": False}
    policy = load_policy(model, dtype="float32", freeze=(), device="cpu", seed=0, **held)
    engine = engine_for(policy, EngineSettings().model_dump())
    engine.load(policy, version=0)
    prompts = [policy.encode(Prompt(i, STARTS[i % len(STARTS)])) for i in range(count)]
    rollouts = engine.sample(prompts, group_size=group_size, sampling=SAMPLING, seed=seed)
    rows = [(rollout.prompt.text, rollout.text) for rollout in rollouts]
    return [rows[i : i + group_size] for i in range(0, len(rows), group_size)]


def pairs_of(model: str, *, count: int, seed: int) -> list[dict[str, str]]:
    """So many pairs whose rewards differ, the better side chosen."""
    pairs = []
    for (prompt, one), (_, other) in written(model, count=3 * count, group_size=2, seed=seed):
        if one.strip() and other.strip() and reward(one) != reward(other):
            better, worse = sorted((one, other), key=reward, reverse=True)
            pairs.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return pairs[:count]


def flipped(pairs: list[dict[str, str]], rate: float, seed: int) -> list[dict[str, str]]:
    """The pairs with this share of them turned round."""
    draw = Random(f"{seed}/flips")
    turned = [draw.random() < rate for _ in pairs]
    return [
        pair if not turn else pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
        for pair, turn in zip(pairs, turned, strict=True)
    ]


def runs_of(folder: Path, model: str, *, seed: int, count: int, schedule: str) -> dict[str, Run]:
    """The finished run of each method on so many pairs; one that lies in the folder is only opened."""
    folders = {method: folder / f"{method}-{seed}" for method in METHODS}
    missing = [method for method, path in folders.items() if not (path / "model").is_dir()]
    pairs = pairs_of(model, count=count, seed=seed) if missing else []
    for method in missing:
        loss, rate, assumed = METHODS[method]
        task = Task(prompts=flipped(pairs, rate, seed), name="stories")
        quiet = {"trackers": [], "checkpoint_every_steps": "none", "samples_per_step": 0}
        settings: dict[str, Any] = (
            SETTINGS | quiet | {"schedule": schedule, "preference.loss": loss, "flip_rate": assumed, "seed": seed}
        )
        settings |= {"method": "preference", "steps": -(-len(pairs) // PER_STEP), "run": folders[method]}
        print(f"  {folders[method].name}: {len(pairs)} pairs", flush=True)
        train(model=model, task=task, **settings)
    return {method: Run.open(path) for method, path in folders.items()}


def mean_of(counts: np.ndarray) -> np.ndarray:
    """Mean [m] of what was summed up, from [m, 2] (sum, number)."""
    return counts[:, 0] / counts[:, 1]


def main() -> None:
    parser = arguments(__doc__, seeds=5)
    parser.add_argument("--schedule", choices=("constant", "cosine"), default="constant", help="of the learning rate")
    options = parser.parse_args()
    folder, model = folder_of(options), str(Path(os.environ["UPSLOPE_DATA"]) / "models" / "stories260k")
    samples = options.limit or SAMPLES
    runs, rewards = [], []
    for seed in range(options.seeds):
        own = runs_of(folder, model, seed=seed, count=options.limit or PAIRS, schedule=options.schedule)
        runs += own.values()
        models = [model, *(str(run.model_path) for run in own.values())]
        found = [written(each, count=samples, group_size=1, seed=10**6 + seed) for each in models]
        rewards.append([[reward(text) for ((_, text),) in rows] for rows in found])
        shown = zip(("before", *METHODS), np.mean(rewards[-1], axis=1), strict=True)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in shown), flush=True)
    before, clean, plain, robust = np.swapaxes(np.array(rewards), 0, 1)  # each [S, samples]
    ones = np.ones_like(before)
    names = ("DPO", "robust DPO")
    cases = [
        learnt(
            "share of the clean gain that is kept",
            *paired(*(np.stack((each - before, clean - before), -1) for each in (plain, robust)), mean_of),
            names=names,
            unit="share",
            wanted=">= 0.8, gain above 0",
        ),
        learnt(
            "reward after 2,000 pairs, 30% flipped",
            *paired(*(np.stack((each, ones), -1) for each in (plain, robust)), mean_of),
            names=names,
            unit="full stops",
            wanted="gain above 0",
        ),
    ]
    gains = {name: (each - before).mean(1) for name, each in zip(METHODS, (clean, plain, robust), strict=True)}
    notes = [f"Gain by seed, {name}: " + ", ".join(f"{gain:.3f}" for gain in own) for name, own in gains.items()]
    notes += [f"Reward before: {before.mean():.3f}", minutes(*runs)]
    report("flipped_labels", cases, results=options.results, notes=notes)


if __name__ == "__main__":
    main()
