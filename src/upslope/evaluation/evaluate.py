"""Evaluate a model on a task: load, decode the held-out prompts, score, and give the mean with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from upslope.engines.local import LocalEngine
from upslope.errors import DataError
from upslope.evaluation.intervals import Interval, mean_interval
from upslope.evaluation.metrics import Measurement, measure
from upslope.policies.loading import load_policy
from upslope.policies.sampling import Sampling
from upslope.rewards import Scorer
from upslope.tasks import Task, load_task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metric's mean with its interval, and everything measured."""

    metric: str
    interval: Interval
    measurement: Measurement


def evaluate(
    model: str | Path,
    task: Task | str,
    *,
    num_prompts: int | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    reward_timeout_s: float = 30.0,
) -> Evaluation:
    """The task's metric of a model (folder, hub id or embedded name) on the task's held-out prompts.

    Temperature 0 decodes greedily. The interval is at 95% over prompts.
    Raises: DataError when the task has no held-out prompts; ModelError; RewardError when no prompt could be scored.
    """
    task = load_task(task) if isinstance(task, str) else task
    prompts = task.eval_prompts[:num_prompts]
    if not prompts:
        raise DataError(f"task {task.name!r} has no held-out prompts to evaluate on")
    policy = load_policy(
        str(model),
        critic=None,
        keep_reference=False,
        dtype=dtype,
        lora=None,
        freeze=(),
        gradient_checkpointing=False,
        device=device,
        seed=seed,
    )
    engine = LocalEngine(max_rows=128)
    engine.load(policy, version=0)
    with Scorer(task.terms, timeout_s=reward_timeout_s) as scorer:
        measured = measure(
            engine,
            [policy.encode(prompt) for prompt in prompts],
            scorer,
            metric=task.metric_name,
            sampling=Sampling(temperature, None, None, max_new_tokens, ()),
            seed=seed,
        )
    return Evaluation(task.metric_name, mean_interval(list(measured.values.values())), measured)
