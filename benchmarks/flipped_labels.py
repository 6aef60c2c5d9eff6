"""Robust DPO under flipped labels: python benchmarks/flipped_labels.py [--seeds 5] [--pairs 2000].

Pairs of stories that the 260k-weight model wrote itself are labelled by a known reward (full stops in the first 32
tokens), 30% of the labels then flipped. Clean DPO, DPO on the flipped labels and robust DPO on them start from the same
weights; each one's gain is the rise of the reward over 1,000 fresh samples. Needs UPSLOPE_DATA, the folder that holds
models/stories260k.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from results import RESULTS, machine

from upslope import Task, train
from upslope.engines.choice import engine_for
from upslope.evaluation.intervals import paired_gain
from upslope.policies.loading import load_policy
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling
from upslope.records import Prompt
from upslope.settings import EngineSettings

STARTS = ("Once upon a time", "One day", "There was a", "Tom and Lily", "The little", "A big", "It was a", "Ben had a")
FLIP_RATE, TOKENS = 0.3, 32
SAMPLING = Sampling(1.0, None, None, TOKENS, ())
METHODS = {
    "clean": ("dpo", 0.0, 0.0),
    "flipped": ("dpo", FLIP_RATE, 0.0),
    "robust": ("robust_dpo", FLIP_RATE, FLIP_RATE),
}
"""Name -> loss, share of labels that are flipped, flip_rate that the loss assumes."""


def reward(text: str) -> float:
    """How many sentences the text ends."""
    return float(text.count("."))


def policy_of(model: str) -> Policy:
    """A model to sample from."""
    held: dict[str, Any] = {"critic": None, "keep_reference": False, "lora": None, "gradient_checkpointing": False}
    return load_policy(model, dtype="float32", freeze=(), device="cpu", seed=0, **held)


def written(model: str, *, count: int, group_size: int, seed: int) -> list[list[tuple[str, str]]]:
    """(prompt, text) of group_size samples of each of count prompts."""
    policy = policy_of(model)
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


def gain_of(method: str, pairs: list[dict[str, str]], *, model: str, seed: int, steps: int, before: float) -> float:
    """The rise of the mean reward of 1,000 fresh samples."""
    loss, rate, assumed = METHODS[method]
    settings: dict[str, Any] = {
        "preference.loss": loss,
        "flip_rate": assumed,
        "beta": 0.1,
        "lr": 3e-4,
        "prompts_per_step": 32,
    }
    settings["training.seed"] = seed
    quiet = {"trackers": [], "checkpoint_every_steps": "none", "samples_per_step": 0}
    task = Task(prompts=flipped(pairs, rate, seed), name="stories")
    folder = Path(tempfile.mkdtemp()) / "run"
    run = train(model=model, task=task, run=folder, method="preference", steps=steps, **settings, **quiet)
    after = [reward(text) for ((_, text),) in written(str(run.model_path), count=1000, group_size=1, seed=10**6 + seed)]
    return fmean(after) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=125)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = str(Path(os.environ["UPSLOPE_DATA"]) / "models" / "stories260k")
    gains: dict[str, list[float]] = {method: [] for method in METHODS}
    for seed in range(options.seeds):
        pairs = pairs_of(model, count=options.pairs, seed=seed)
        before = fmean(reward(text) for ((_, text),) in written(model, count=1000, group_size=1, seed=10**6 + seed))
        for method in METHODS:
            gains[method].append(gain_of(method, pairs, model=model, seed=seed, steps=options.steps, before=before))
        shown = ", ".join(f"{method} {own[-1]:+.3f}" for method, own in gains.items())
        print(f"seed {seed}: {len(pairs)} pairs, reward before {before:.3f}; gains: {shown}", flush=True)
    ahead = paired_gain(gains["flipped"], gains["robust"])
    kept = fmean(gains["robust"]) / fmean(gains["clean"])
    print(f"robust DPO keeps {kept:.0%} of the clean gain; beside plain DPO {ahead}")
    document = {"benchmark": "flipped_labels", "machine": machine(), "pairs": options.pairs, "steps": options.steps}
    document |= {"gains": gains, "kept": kept, "robust_minus_plain": dataclasses.asdict(ahead)}
    (options.results / "flipped_labels.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
