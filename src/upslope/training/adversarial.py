"""Adversarial imitation: a discriminator learns to tell demonstrations from the policy's own rows, and pays the policy
for being taken for them. The policy's step is that of the policy-gradient loop, with any of its presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from upslope import losses
from upslope.engines.local import Writer
from upslope.errors import DataError, RecipeError
from upslope.evaluation.judgements import auc, length_correlation, right
from upslope.evaluation.metrics import Measurement
from upslope.policies.loading import load_policy
from upslope.policies.policy import Policy
from upslope.policies.reward import LABELS, RewardPolicy
from upslope.recipe import Recipe
from upslope.records import Batch, Rollout, collate
from upslope.rewards.learned import score_actions, score_rows
from upslope.training.gather import Experience, gather
from upslope.training.optimizer import apply_gradients, set_learning_rate
from upslope.training.policy_gradient import attempt, describe, token_counts
from upslope.training.session import Session
from upslope.training.supervised import demonstration
from upslope.training.timing import time_metrics, timed
from upslope.training.update import Terms, accumulate, pieces


def attach_discriminator(recipe: Recipe, policy: Policy) -> RewardPolicy | None:
    """The discriminator that an adversarial recipe names, its weights held beside the policy's: one optimiser, one
    checkpoint. None for any other recipe.

    AIRL's has one weight more, the offset: the typical log-probability of what is judged, which the score would else
    first have to learn.
    Raises: RecipeError or ModelError for one that cannot judge the policy's tokens.
    """
    if not recipe.adversarial:
        return None
    settings = recipe.model
    discriminator = load_policy(
        recipe.inverse.discriminator or settings.name,
        kind="reward",
        labels=LABELS,
        max_length=settings.max_length,
        critic=None,
        keep_reference=False,
        dtype=settings.dtype,
        lora=None,
        freeze=(),
        gradient_checkpointing=settings.gradient_checkpointing,
        device=settings.device,
        seed=recipe.training.seed,
    )
    assert isinstance(discriminator, RewardPolicy)
    if recipe.inverse.level == "token":
        discriminator.judge_tokens()
        if not cast(Writer, policy).tokenizer.get_vocab().items() <= discriminator.tokenizer.get_vocab().items():
            raise RecipeError("inverse.level is 'token', but inverse.discriminator has other tokens than the policy")
    policy.module.add_module("discriminator", discriminator.module)
    if recipe.inverse.learner == "airl":
        discriminator.offset = nn.Parameter(torch.zeros((), device=policy.device))
        policy.module.register_parameter("discriminator_offset", discriminator.offset)
    return discriminator


def train(session: Session) -> None:
    """Train policy and discriminator in turn until the session is over."""
    while session.settle():
        step = session.state.step + 1
        with timed() as seconds:
            with session.interrupts.allowed():
                experience = gather(session, step=step, scorer=Discriminated(session))
            session.rest_engine()
            state = dataclasses.replace(session.state, step=step, position=experience.position)
            told = discriminate(session, experience.rollouts, step=step) if experience.rollouts else {}
            state, metrics = attempt(session, experience, state)
            session.load_engine(step)
        told = describe(experience, expected=False, metric=session.task.metric_name) | told
        metrics = told | metrics | _times(session, experience, metrics, seconds)
        state = dataclasses.replace(
            state,
            bad_steps=state.bad_steps + 1 if metrics.get("skipped") else 0,
            train_s=state.train_s + sum(seconds.values()),
        )
        session.finish_step(state, metrics)


def _times(
    session: Session, experience: Experience, metrics: Mapping[str, float | str], seconds: Mapping[str, float]
) -> dict[str, float | str]:
    return time_metrics(seconds, token_counts(session, experience, metrics))


class Discriminated:
    """Scores rollouts by the session's discriminator as it is: AIRL's logit D, or GAIL's -log(1 - D), once a row or for
    every action."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with rewards; empty ones, and those the discriminator cannot read whole, with a failure."""
        session = self._session
        rows = {place: read(session, rollout) for place, rollout in enumerate(rollouts) if rollout.actions}
        readable = {place: row for place, row in rows.items() if row is not None}
        logprobs = judged_logprobs(session, [rollouts[place].engine_logprobs for place in readable])
        if session.state.step == 0 and session.recipe.inverse.learner == "airl" and len(logprobs):
            with torch.no_grad():
                _judge(session).offset.fill_(logprobs.mean())
        budget = session.recipe.training.micro_batch_tokens
        scores = score_actions(_judge(session), list(readable.values()), max_tokens=budget)
        logits = discriminator_logits(session, torch.tensor([*chain(*scores)]), logprobs)
        paid = losses.adversarial_reward(logits, form=session.recipe.inverse.learner)
        found = [row.replace(failure="too long for the discriminator" if row.actions else "empty") for row in rollouts]
        sizes = [len(own) for own in scores]
        for place, pay, own in zip(readable, paid.split(sizes), logits.split(sizes), strict=True):
            unpaid = len(rollouts[place].actions) - len(pay)
            rewards = (*[0.0] * unpaid, *pay.tolist())
            metrics = {"discriminator_logit": float(own.mean()), "reward": float(pay.sum())}
            found[place] = rollouts[place].replace(rewards=rewards, metrics={**rollouts[place].metrics, **metrics})
        return found


def read(session: Session, row: Rollout) -> Rollout | None:
    """The row as the discriminator reads it: its text, or its very tokens; None where it is too long."""
    judge = _judge(session)
    found = judge.written(row) if judge.per_token else judge.demonstration(row.prompt, row.text)
    return found if 0 < len(found.tokens) <= judge.max_length else None


def judged_logprobs(session: Session, rows: Sequence[Sequence[float]]) -> Tensor:
    """log pi [M] of what is judged, from those of each row's actions: of rows, or of all actions end to end."""
    parts = [torch.tensor(row, dtype=torch.float64) for row in rows]
    if not _judge(session).per_token:
        parts = [part.sum()[None] for part in parts]
    return torch.cat(parts).float() if parts else torch.zeros(0)


def discriminator_logits(session: Session, scores: Tensor, logprobs: Tensor) -> Tensor:
    """logit D [M]: AIRL's score - log pi, or for GAIL the score alone."""
    return losses.airl_logits(scores, logprobs) if session.recipe.inverse.learner == "airl" else scores


def discriminate(session: Session, rollouts: Sequence[Rollout], *, step: int) -> dict[str, float | str]:
    """One optimiser step of the discriminator, on the rollouts against the demonstrations of their prompts; each side
    weighs a half."""
    recipe, judge, device = session.recipe, _judge(session), session.policy.device
    prompts = {rollout.prompt.id: rollout.prompt for rollout in rollouts}
    column = recipe.inverse.demonstrated
    given = [demonstration(session.policy, p, column=column, group=g) for g, p in enumerate(prompts.values())]
    shown = [row for row in given if read(session, row) is not None]
    if not shown:
        return {"problem": "the discriminator can read none of the step's demonstrations whole"}
    theirs = judged_logprobs(session, _logprobs(session, shown))
    own = judged_logprobs(session, [rollout.engine_logprobs for rollout in rollouts])
    logprobs = torch.cat((theirs, own)).to(device)
    kinds = torch.arange(len(logprobs), device=device) < len(theirs)
    weights = torch.where(kinds, 0.5 / len(theirs), 0.5 / len(own))
    batch, _ = collate([row for each in (*shown, *rollouts) if (row := read(session, each)) is not None])

    def terms_of(piece: Batch, index: Tensor) -> Terms:
        logits = discriminator_logits(session, judge.action_scores(piece), logprobs[index])
        loss = losses.discriminator_loss(logits, kinds[index], weights=weights[index], denominator=1.0)
        told = (weights[index] * ((logits > 0) == kinds[index])).sum()
        return Terms(loss, {"loss_discriminator": float(loss.detach()), "accuracy": float(told)})

    set_learning_rate(session.optimizer, recipe.optimizer, step=step, total_steps=recipe.training.steps)
    parts = accumulate(judge, batch.to(device), max_tokens=recipe.training.micro_batch_tokens, terms_of=terms_of)
    if apply_gradients(session.policy.module, session.optimizer, max_norm=recipe.optimizer.max_grad_norm) is None:
        return {**parts, "problem": "a loss or gradient of the discriminator was not finite"}
    return dict(parts)


@torch.no_grad()
def measure(session: Session) -> Measurement:
    """The share of held-out prompts whose demonstration the discriminator scores above a sample of the policy.

    0.5 where it can no longer tell them apart. The event `reward_report` holds the area under the curve, and the
    correlation of scores with length.
    """
    recipe = session.recipe
    held_out = session.task.eval_prompts[: recipe.evaluation.num_prompts]
    column = recipe.inverse.demonstrated
    given = [demonstration(session.policy, prompt, column=column, group=0) for prompt in held_out]
    with session.interrupts.allowed():
        sampled = session.engine.sample(
            session.encode(held_out), group_size=1, sampling=session.sampling, seed=session.seed("evaluate")
        )
    both = [pair for pair in zip(given, sampled, strict=True) if pair[1].actions]
    pairs = [pair for pair in both if all(read(session, row) is not None for row in pair)]
    if not pairs:
        raise DataError("no held-out prompt has a demonstration and a sample that the discriminator can read whole")
    rows = [row for pair in pairs for row in pair]
    readable = [row for each in rows if (row := read(session, each)) is not None]
    scores = score_rows(_judge(session), readable, max_tokens=recipe.training.micro_batch_tokens)
    report = {
        "auc_discriminator": auc(scores[::2], scores[1::2]),
        "length_correlation_discriminator": length_correlation(scores, [len(row.actions) for row in rows]),
    }
    session.run.log("reward_report", step=session.state.step, demonstrations=len(pairs), **report)
    gaps = [mine - theirs for mine, theirs in zip(scores[::2], scores[1::2], strict=True)]
    return Measurement({pair[0].prompt.id: right(gap) for pair, gap in zip(pairs, gaps, strict=True)}, {}, ())


def _judge(session: Session) -> RewardPolicy:
    assert session.discriminator is not None
    return session.discriminator


@torch.no_grad()
def _logprobs(session: Session, rows: Sequence[Rollout]) -> list[list[float]]:
    """log pi of each row's actions under the distribution that is sampled from."""
    batch = collate(rows)[0].to(session.policy.device)
    found = torch.zeros(len(batch.actions), device=session.policy.device)
    for _, index, piece in pieces(session.policy, batch, max_tokens=session.recipe.training.micro_batch_tokens):
        found[index] = session.policy.score(piece, sampling=session.sampling).logprobs.float()
    return [row.tolist() for row in batch.split_rows(found)]
