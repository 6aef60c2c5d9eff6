"""Supervised warm start: raise the likelihood of given completions. The same steps, state and run folder as RL."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from upslope import losses
from upslope.errors import DataError
from upslope.policies.policy import Policy
from upslope.records import Batch, Prompt, Rollout, collate
from upslope.training.seeds import data_order
from upslope.training.session import Session
from upslope.training.stepping import finish, take_step
from upslope.training.timing import timed
from upslope.training.update import Terms


def train(session: Session) -> None:
    """Train on the completions of the task's prompts until the session is over."""
    recipe = session.recipe
    weights = action_weights(session) if recipe.supervised.class_weights == "balanced" else None
    while session.settle():
        session.rest_engine()
        step, count = session.state.step + 1, recipe.training.prompts_per_step
        column, prompts = recipe.supervised.completion, session.task.prompts
        with timed() as seconds:
            indices = data_order(recipe.training.seed, position=session.state.position, count=count, size=len(prompts))
            batch, _ = collate(
                [demonstration(session.policy, prompts[i], column=column, group=g) for g, i in enumerate(indices)]
            )
            metrics = fit(session, batch.to(session.policy.device), step=step, action_weights=weights)
        finish(session, metrics, seconds, prompts=count, tokens=len(batch.tokens))


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
    plain = dataclasses.replace(session.sampling, temperature=1.0, top_k=None, top_p=None)
    ones = torch.ones(len(batch.actions), device=batch.actions.device)
    weights = ones if action_weights is None else action_weights.to(ones)[batch.actions]
    total = float(weights.sum())

    def terms_of(piece: Batch, index: Tensor) -> Terms:
        logprobs = session.policy.score(piece, sampling=plain).logprobs
        loss = losses.weighted_sum(-logprobs, weights=weights[index].to(logprobs), denominator=total)
        return Terms(loss, {"loss": float(loss.detach())})

    return take_step(session, batch, step=step, terms_of=terms_of, dropout=session.recipe.supervised.dropout)


def demonstration(policy: Policy, prompt: Prompt, *, column: str, group: int) -> Rollout:
    """A prompt's row with the completion that stands in a column of it.

    Raises: DataError when the prompt has no such column, or a completion that the policy cannot write.
    """
    if column not in prompt.columns:
        raise DataError(f"{prompt.name} has no column {column!r} (supervised.completion) to learn from")
    return policy.demonstration(prompt, prompt.columns[column]).replace(group=group)
