"""One step of a loop that learns from given rows: what supervised, preference and reward-model training share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from upslope.records import Batch
from upslope.stopwatch import span
from upslope.training.optimizer import apply_gradients, set_learning_rate
from upslope.training.session import Session
from upslope.training.timing import time_metrics
from upslope.training.update import Terms, accumulate


def take_step(
    session: Session,
    batch: Batch,
    *,
    step: int,
    terms_of: Callable[[Batch, Tensor], Terms],
    whole: bool = False,
    dropout: bool = False,
) -> dict[str, float | str]:
    """One optimiser step over the batch, and what it logs. terms_of and whole: as in `update.accumulate`; dropout:
    whether the model's own acts."""
    recipe, policy = session.recipe, session.policy
    lr = set_learning_rate(session.optimizer, recipe.optimizer, step=step, total_steps=recipe.training.steps)
    budget = recipe.training.micro_batch_tokens
    with policy.dropout(dropout):
        parts = accumulate(policy, batch, max_tokens=budget, terms_of=terms_of, whole=whole)
    with span("optimiser"):
        norm = apply_gradients(policy.module, session.optimizer, max_norm=recipe.optimizer.max_grad_norm)
    metrics: dict[str, float | str] = {**parts, "lr": lr, "samples": batch.num_rows}
    if norm is None:
        return metrics | {"skipped": 1, "problem": "a loss or gradient was not finite"}
    return metrics | {"grad_norm": norm}


def finish(
    session: Session, metrics: Mapping[str, float | str], seconds: Mapping[str, float], *, prompts: int, tokens: int
) -> None:
    """End the step: its state, its times, its log. prompts were taken from the data, tokens trained on."""
    state = session.state
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        position=state.position + prompts,
        bad_steps=state.bad_steps + 1 if metrics.get("skipped") else 0,
        train_s=state.train_s + sum(seconds.values()),
    )
    times = time_metrics(seconds, {"update": tokens})
    session.finish_step(state, {**metrics, **times, "tokens_per_s": tokens / sum(seconds.values())})
