"""Supervised warm start: raise the likelihood of given completions. The same steps, state and run folder as RL."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from upslope import losses
from upslope.errors import DataError
from upslope.policies.policy import Policy
from upslope.records import Batch, Prompt, Rollout, collate
from upslope.stopwatch import span
from upslope.training.optimizer import apply_gradients, set_learning_rate
from upslope.training.seeds import data_order
from upslope.training.session import Session
from upslope.training.timing import time_metrics, timed
from upslope.training.update import Terms, accumulate


def train(session: Session) -> None:
    """Train on the completions of the task's prompts until the session is over."""
    recipe = session.recipe
    weights = action_weights(session) if recipe.supervised.class_weights == "balanced" else None
    while session.settle():
        session.rest_engine()
        state = session.state
        step, count = state.step + 1, recipe.training.prompts_per_step
        size = len(session.task.prompts)
        column, prompts = recipe.supervised.completion, session.task.prompts
        with timed() as seconds:
            indices = data_order(recipe.training.seed, position=state.position, count=count, size=size)
            batch, _ = collate(
                [demonstration(session.policy, prompts[i], column=column, group=g) for g, i in enumerate(indices)]
            )
            metrics = fit(session, batch.to(session.policy.device), step=step, action_weights=weights)
        state = dataclasses.replace(
            state,
            step=step,
            position=state.position + count,
            bad_steps=state.bad_steps + 1 if metrics.get("skipped") else 0,
            train_s=state.train_s + sum(seconds.values()),
        )
        metrics |= time_metrics(seconds, {"update": len(batch.tokens)})
        session.finish_step(state, {**metrics, "tokens_per_s": len(batch.tokens) / sum(seconds.values())})


def action_weights(session: Session) -> Tensor:
    """What each action id weighs, inversely to how often it is among the demonstrations: weights [largest id + 1].

    Over all demonstrations the weights average to 1. Source: King & Zeng 2001; scikit-learn's class_weight="balanced".
    """
    column = session.recipe.supervised.completion
    rows = [demonstration(session.policy, prompt, column=column, group=0) for prompt in session.task.prompts]
    counts = torch.bincount(torch.tensor([action for row in rows for action in row.actions]))
    return torch.where(counts == 0, 0.0, counts.sum() / ((counts > 0).sum() * counts))


def fit(session: Session, batch: Batch, *, step: int, action_weights: Tensor | None = None) -> dict[str, float | str]:
    """One optimiser step on the mean cross-entropy [nats per action] of the batch's actions, weighted by their ids."""
    recipe = session.recipe
    plain = dataclasses.replace(session.sampling, temperature=1.0, top_k=None, top_p=None)
    lr = set_learning_rate(session.optimizer, recipe.optimizer, step=step, total_steps=recipe.training.steps)

    ones = torch.ones(len(batch.actions), device=batch.actions.device)
    weights = ones if action_weights is None else action_weights.to(ones)[batch.actions]
    total = float(weights.sum())

    def terms_of(piece: Batch, index: Tensor) -> Terms:
        logprobs = session.policy.score(piece, sampling=plain).logprobs
        loss = losses.weighted_sum(-logprobs, weights=weights[index].to(logprobs), denominator=total)
        return Terms(loss, {"loss": float(loss.detach())})

    with session.policy.dropout(recipe.supervised.dropout):
        metrics: dict[str, float | str] = dict(
            accumulate(session.policy, batch, max_tokens=recipe.training.micro_batch_tokens, terms_of=terms_of)
        )
    with span("optimiser"):
        norm = apply_gradients(session.policy.module, session.optimizer, max_norm=recipe.optimizer.max_grad_norm)
    metrics |= {"lr": lr, "samples": batch.num_rows}
    if norm is None:
        return metrics | {"skipped": 1, "problem": "a loss or gradient was not finite"}
    return metrics | {"grad_norm": norm}


def demonstration(policy: Policy, prompt: Prompt, *, column: str, group: int) -> Rollout:
    """A prompt's row with the completion that stands in a column of it.

    Raises: DataError when the prompt has no such column, or a completion that the policy cannot write.
    """
    if column not in prompt.columns:
        raise DataError(f"{prompt.name} has no column {column!r} (supervised.completion) to learn from")
    return policy.demonstration(prompt, prompt.columns[column]).replace(group=group)
