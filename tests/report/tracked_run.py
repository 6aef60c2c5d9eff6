"""A real run with the trackers named, resumed from before its end: `python tracked_run.py ROOT NAME...`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import upslope


def task():
    return upslope.Task(prompts=["sea", "sky"], reward=lambda completion: float(len(completion)), eval_prompts=["oak"])


def main(root, *names):
    settings = {"model": "tiny-gpt2", "algorithm": "rloo", "prompts_per_step": 1, "max_new_tokens": 4}
    settings |= {"isolation": "none", "checkpoint_every_steps": 1, "every_steps": 2, "warmup_steps": 0, "lr": 1e-3}
    folder = Path(root) / "whole"
    run = upslope.train(task=task(), run=folder, trackers=names, steps=2, **settings)
    shutil.rmtree(run.checkpoints()[-1])
    upslope.resume(folder, task=task(), overrides={"steps": 3})  # the second step again, and a third
    if "mlflow" in names:
        unreachable(Path(root), settings)


def unreachable(root, settings):
    """Two runs within the user's own MLflow run: one in it, and one whose store cannot be opened."""
    import mlflow

    with mlflow.start_run(run_name="the user's own"):
        upslope.train(task=task(), run=root / "within", trackers=["mlflow"], steps=1, **settings)
        mlflow.log_metric("after", 1.0)
    mlflow.set_tracking_uri("sqlite:////dev/null/mlflow.db")
    upslope.train(task=task(), run=root / "without", trackers=["mlflow", "tensorboard"], steps=1, **settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
