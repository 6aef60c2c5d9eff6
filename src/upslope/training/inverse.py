"""Inverse reinforcement learning: a policy and the reward that explains its demonstrations, by IQ-Learn. The same
steps, state and run folder as RL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from upslope import losses
from upslope.engines.local import Writer
from upslope.errors import DataError
from upslope.estimators import row_sum
from upslope.evaluation.judgements import auc, length_correlation, right
from upslope.evaluation.metrics import Measurement
from upslope.policies.policy import Policy
from upslope.records import Batch, Rollout, collate
from upslope.training.seeds import data_order
from upslope.training.session import Session
from upslope.training.stepping import finish, take_step
from upslope.training.supervised import demonstration
from upslope.training.timing import timed
from upslope.training.update import Terms, pieces


def train(session: Session) -> None:
    """Train on the demonstrations of the task's prompts until the session is over."""
    recipe, prompts = session.recipe, session.task.prompts
    while session.settle():
        session.rest_engine()
        step, count = session.state.step + 1, recipe.training.prompts_per_step
        with timed() as seconds:
            order = data_order(recipe.training.seed, position=session.state.position, count=count, size=len(prompts))
            column = recipe.inverse.demonstrated
            batch, _ = collate(
                [demonstration(session.policy, prompts[i], column=column, group=g) for g, i in enumerate(order)]
            )
            metrics = fit(session, batch.to(session.policy.device), step=step)
        finish(session, metrics, seconds, prompts=count, tokens=len(batch.tokens))


def fit(session: Session, batch: Batch, *, step: int) -> dict[str, float | str]:
    """One optimiser step on the IQ-Learn loss, a mean over the batch's actions."""
    settings, total = session.recipe.inverse, float(len(batch.actions))
    policy = session.policy

    def terms_of(piece: Batch, _: Tensor) -> Terms:
        chosen, values = action_values(policy, piece)
        ended = chosen.new_zeros(piece.num_rows)
        scale: dict[str, Any] = {"weights": torch.ones_like(chosen), "denominator": total}
        loss = losses.inverse_q(
            chosen, values, piece.num_actions, ended, gamma=settings.discount, coef=settings.reward_price, **scale
        )
        with torch.no_grad():
            rewards = losses.inverse_q_rewards(chosen, values, piece.num_actions, ended, gamma=settings.discount)
            nll = float((values - chosen).sum()) / total
        square = float(rewards.square().sum()) / total
        parts = {"loss": float(loss.detach()), "nll": nll, "recovered_reward": float(rewards.sum()) / total}
        return Terms(loss, parts | {"recovered_reward_square": square})

    return take_step(session, batch, step=step, terms_of=terms_of)


def action_values(policy: Policy, batch: Batch) -> tuple[Tensor, Tensor]:
    """Q(s, a) and V(s) [M]: the logit of each action, and the log-sum-exp of all logits there; differentiable."""
    logits = torch.cat(list(policy.distributions(batch))).float()
    return logits.gather(1, batch.actions[:, None])[:, 0], logits.logsumexp(1)


@torch.no_grad()
def measure(session: Session) -> Measurement:
    """The share of held-out prompts whose demonstration is paid more than a sample of the starting model, by the
    implicit reward log pi - log pi_ref.

    What the rewards pay goes to the log as `reward_report`: for this and the recovered reward, the area under the curve
    of demonstrations against samples, and the correlation with length.
    """
    recipe, policy = session.recipe, session.policy
    held_out = session.task.eval_prompts[: recipe.evaluation.num_prompts]
    column = recipe.inverse.demonstrated
    given = [demonstration(policy, prompt, column=column, group=0) for prompt in held_out]
    with session.policy.reference() as frozen, session.interrupts.allowed():
        session.engine.load(frozen, version=0)
        sampled = session.engine.sample(
            session.encode(held_out), group_size=1, sampling=session.sampling, seed=session.seed("evaluate")
        )
    session.rest_engine()
    ended = [_ended(session, row) for row in sampled]
    pairs = [(mine, other) for mine, other in zip(given, ended, strict=True) if other is not None]
    if not pairs:
        raise DataError("the starting model writes nothing after any held-out prompt, so there is nothing to compare")
    rows = [row for pair in pairs for row in pair]
    recovered, implicit = row_rewards(session, rows)
    lengths = [float(len(row.actions)) for row in rows]
    report = {}
    for name, values in (("recovered", recovered), ("implicit", implicit)):
        report[f"auc_{name}"] = auc(values[::2], values[1::2])
        report[f"length_correlation_{name}"] = length_correlation(values, lengths)
    session.run.log("reward_report", step=session.state.step, demonstrations=len(pairs), **report)
    gaps = [mine - theirs for mine, theirs in zip(implicit[::2], implicit[1::2], strict=True)]
    return Measurement({pair[0].prompt.id: right(gap) for pair, gap in zip(pairs, gaps, strict=True)}, {}, ())


def _ended(session: Session, row: Rollout) -> Rollout | None:
    """A sample with its end, as the reward functions read it where it was cut; None where there is no room for one, or
    nothing was written."""
    policy = cast(Writer, session.policy)
    if not row.actions or row.actions[-1] in policy.eos_ids:
        return row if row.actions else None
    room, end = policy.room(row.prompt), policy.tokenizer.eos_token_id
    if room is not None and len(row.actions) >= room:
        return None
    actions = (*row.actions, end)
    return policy.row(row.prompt, actions, (0.0,) * len(actions), text=row.text, stop_reason="eos")


def row_rewards(session: Session, rows: Sequence[Rollout]) -> tuple[list[float], list[float]]:
    """What each row is paid: by the recovered reward Q - discount V', and by log pi - log pi_ref; sums over actions."""
    recipe = session.recipe
    batch = collate(rows)[0].to(session.policy.device)
    found = torch.zeros(2, len(rows), dtype=torch.float64)
    budget = recipe.training.micro_batch_tokens
    with session.policy.reference() as frozen:
        for picked, _, piece in pieces(session.policy, batch, max_tokens=budget):
            chosen, values = action_values(session.policy, piece)
            before, normaliser = action_values(frozen, piece)
            ended = chosen.new_zeros(piece.num_rows)
            gamma = recipe.inverse.discount
            rewards = losses.inverse_q_rewards(chosen, values, piece.num_actions, ended, gamma=gamma)
            ratios = (chosen - values) - (before - normaliser)
            found[:, picked] = torch.stack([row_sum(x, piece.num_actions) for x in (rewards, ratios)]).double().cpu()
    recovered, implicit = found.tolist()
    return recovered, implicit
