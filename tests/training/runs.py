"""Small real runs for the tests of resuming: as a module for its recipes, as a script for fresh processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import upslope

STEPS = 6
STOP_AFTER = 3

COMMON = {
    "steps": STEPS,
    "prompts_per_step": 3,
    "max_new_tokens": 6,
    "warmup_steps": 2,
    "schedule": "cosine",
    "lr": 1e-3,
    "samples_per_step": 1,
    "checkpoint_every_steps": 2,
    "isolation": "none",
}
CASES = {
    "ppo": {
        "model": "tiny-llama",
        "algorithm": "ppo",
        "group_size": 2,
        "kl_target": 0.05,
        "kl_horizon": 20.0,
        "epochs": 2,
        "minibatches": 3,
        "critic": "separate",
    },
    "grpo": {"model": "tiny-gpt2", "algorithm": "grpo", "group_size": 4, "kl_target": 0.05, "kl_horizon": 20.0},
    "reinforce": {"model": "tiny-llama", "algorithm": "reinforce", "every_steps": 2},
    "supervised": {"model": "tiny-gpt2", "method": "supervised", "dropout": True},
    "classifier": {
        "model": "tiny-bert",
        "kind": "classifier",
        "algorithm": "ppo",
        "critic": "separate",
        "epochs": 2,
        "minibatches": 3,
    },
    "expected": {"model": "tiny-llama", "kind": "classifier", "algorithm": "reinforce_pp", "expected": True},
    "tagger": {"model": "tiny-bert", "kind": "tagger", "algorithm": "grpo", "group_size": 4, "every_steps": 2},
    "tagger_supervised": {"model": "tiny-llama", "kind": "tagger", "method": "supervised", "completion": "tags"},
    "seq2seq": {"model": "tiny-bart", "kind": "seq2seq", "algorithm": "ppo", "group_size": 2, "epochs": 2},
    "seq2seq_supervised": {"model": "tiny-t5", "kind": "seq2seq", "method": "supervised", "dropout": True},
    "reward_model": {"model": "tiny-bert", "method": "reward_model", "every_steps": 2},
    "dpo": {"model": "tiny-llama", "method": "preference", "micro_batch_tokens": 40},
    "kto_online": {
        "model": "tiny-llama",
        "method": "preference",
        "preference.loss": "kto",
        "pairs": "online",
        "every_steps": 2,
    },
    "inverse": {"model": "tiny-llama", "method": "inverse"},
    "airl": {"model": "tiny-llama", "method": "inverse", "learner": "airl", "algorithm": "rloo", "group_size": 2},
    "gail_token": {
        "model": "tiny-gpt2",
        "method": "inverse",
        "learner": "gail",
        "level": "token",
        "algorithm": "ppo",
        "group_size": 2,
    },
    "self_play": {"model": "tiny-gpt2", "method": "preference", "preference.loss": "ipo", "pairs": "self_play"},
}
LABELS = {"classifier": ("sea", "sky", "fog", "oak", "ice"), "tagger": ("o", "B-a", "I-a")}


def vowels(completion):
    """Share of vowels, which random text varies in."""
    return sum(letter in "aeiou" for letter in completion) / (1 + len(completion))


def task(kind="causal"):
    """Words to say, to choose between, or to tag."""
    words = ("sea", "sky", "fog", "oak", "ice")
    prompts = [{"prompt": f"say {w}", "completion": w, "chosen": w, "rejected": f"not {w}"} for w in words]
    if kind == "tagger":
        prompts = [{"prompt": prompt["prompt"], "tags": ["o", "B-a"]} for prompt in prompts]
    labels = LABELS.get(kind, ())
    held_out = [{"prompt": f"say {w}", "chosen": w, "rejected": "no"} for w in ("oat", "aid")]
    return upslope.Task(prompts=prompts, reward=vowels, eval_prompts=held_out, labels=labels)


def task_of(case):
    return task(CASES[case].get("kind", "causal"))


class StopAfter:
    """A tracker that asks the run to stop once a step is done, as Ctrl-C would."""

    def __init__(self, step):
        self.step = step

    def log(self, step, values):
        if step == self.step and "step_s" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


def start(case, folder, trackers=()):
    return upslope.train(task=task_of(case), run=folder, trackers=list(trackers), **{**COMMON, **CASES[case]})


def main(mode, root):
    for case in CASES:
        folder = Path(root) / case
        if mode == "whole":
            start(case, folder)
        elif mode == "resume":
            upslope.resume(folder, task=task_of(case))
        else:
            try:
                start(case, folder, [StopAfter(STOP_AFTER)])
            except KeyboardInterrupt:
                continue
            raise AssertionError("the run was not interrupted")


if __name__ == "__main__":
    main(*sys.argv[1:])
