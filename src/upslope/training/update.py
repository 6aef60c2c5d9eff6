"""One optimiser step of a policy-gradient method: micro-batches -> loss -> gradients -> weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope import losses
from upslope.algorithm import AlgorithmSettings
from upslope.estimators import kl_estimate
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling
from upslope.records import Batch, Scores
from upslope.stopwatch import span
from upslope.training.optimizer import apply_gradients

Piece = tuple[Tensor, Tensor, Batch]  # which rows, which of the batch's actions, and the piece itself


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss's parts as scalars, and sums over actions that describe the update."""

    loss: Tensor
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one optimiser step did: parts of the loss, gradient norm, drift; the log-probabilities [M] before it;
    skipped where something was not finite."""

    values: dict[str, float]
    logprobs: Tensor
    skipped: bool


def policy_loss(
    scores: Scores,
    batch: Batch,
    settings: AlgorithmSettings,
    *,
    kl_coef: float,
    weights: Tensor,
    denominator: float,
    num_actions: int,
) -> Terms:
    """surrogate + value_coef * value loss - entropy_coef * entropy + kl_coef * KL, for one micro-batch.

    weights [M] and denominator count over the whole optimiser step; num_actions is its number of actions, over which
    the value loss and the entropy bonus are means.
    """
    weights = weights.to(scores.logprobs)
    old = scores.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    trusted = weights
    if settings.importance_cap is not None:
        gap = losses.truncated_importance_weights(old, batch.engine_logprobs, cap=settings.importance_cap)
        trusted = weights * gap
    policy = surrogate(scores.logprobs, old, batch, settings, weights=trusted, denominator=denominator)
    loss, parts = policy, {"loss_policy": float(policy.detach())}
    ones = torch.ones_like(scores.logprobs)
    if settings.needs_critic:
        assert scores.values is not None
        assert batch.returns is not None
        value = losses.value_loss(
            scores.values,
            batch.old_values,
            batch.returns,
            clip=settings.value_clip,
            weights=ones,
            denominator=num_actions,
        )
        loss, parts["loss_value"] = loss + settings.value_coef * value, float(value.detach())
    if scores.entropy is not None:
        entropy = losses.weighted_sum(scores.entropy, weights=ones, denominator=num_actions)
        parts["entropy"] = float(entropy.detach())
        if settings.entropy_coef > 0:
            loss = loss - settings.entropy_coef * entropy
    if settings.kl == "loss":
        assert batch.ref_logprobs is not None
        kl = kl_estimate(scores.logprobs, batch.ref_logprobs, estimator=settings.kl_estimator)
        penalty = losses.weighted_sum(kl, weights=weights, denominator=denominator)
        loss, parts["loss_kl"] = loss + kl_coef * penalty, float(penalty.detach())
    return Terms(loss, parts)


def surrogate(
    logprobs: Tensor,
    old: Tensor,
    batch: Batch,
    settings: AlgorithmSettings,
    *,
    weights: Tensor,
    denominator: float,
) -> Tensor:
    """The policy loss that `algorithm.surrogate` names."""
    advantages = batch.advantages
    assert advantages is not None
    if settings.surrogate == "log_prob":
        return losses.reinforce(logprobs, advantages, weights=weights, denominator=denominator)
    if settings.surrogate == "clip":
        return losses.clipped_surrogate(
            logprobs,
            old,
            advantages,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            weights=weights,
            denominator=denominator,
        )
    if settings.surrogate == "cispo":
        assert settings.clip_high is not None
        return losses.cispo(
            logprobs,
            old,
            advantages,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            weights=weights,
            denominator=denominator,
        )
    return losses.sequence_surrogate(
        logprobs,
        old,
        advantages,
        batch.num_actions,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        length_normalised=settings.surrogate != "sequence_ratio",
        token_level=settings.surrogate == "sequence_clip_token",
        weights=weights,
        denominator=denominator,
    )


def step_weights(batch: Batch, settings: AlgorithmSettings, *, constant_length: int) -> tuple[Tensor, float]:
    """The weight [M] of each action and the denominator of one optimiser step over this batch.

    A sequence surrogate is one term a row, spelt as equal shares of its actions. Where every answer of a prompt is in
    the batch, each weighs as its probability, and the prompts are what is averaged over.
    """
    if settings.expected:
        return batch.engine_logprobs.exp(), float(len(batch.group.unique()))
    whole_rows = settings.surrogate.startswith("sequence") and settings.over == "rows"
    return losses.aggregation(
        batch.num_actions, over="rows_token_mean" if whole_rows else settings.over, constant_length=constant_length
    )


def pieces(policy: Policy, batch: Batch, *, max_tokens: int, whole: bool = False) -> Iterator[Piece]:
    """The batch cut into micro-batches: which rows, which of the batch's actions, and the piece itself.

    whole: the rows of a group stay together and adjacent, in their order, even where they exceed max_tokens.
    """
    action_rows = torch.arange(len(batch.actions)).split(batch.num_actions.tolist())
    planned = whole_groups(policy, batch, max_tokens=max_tokens) if whole else None
    for rows in planned or policy.micro_batches(batch, max_tokens=max_tokens):
        yield rows, torch.cat([action_rows[row] for row in rows.tolist()]), batch.select(rows)


def whole_groups(policy: Policy, batch: Batch, *, max_tokens: int) -> list[Tensor]:
    """Row indices of micro-batches of whole groups, for losses that compare a group's rows. As many as the policy
    computes at most max_tokens for; a larger group stands alone."""
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group.tolist()):
        groups.setdefault(group, []).append(row)
    lengths = batch.row_lengths.tolist()
    cut: list[list[int]] = []
    for rows in sorted(groups.values(), key=lambda rows: (-max(lengths[row] for row in rows), rows)):
        joined = [*cut[-1], *rows] if cut else rows
        if cut and len(policy.micro_batches(batch.select(joined), max_tokens=max_tokens)) == 1:
            cut[-1] = joined
        else:
            cut.append(rows)
    return [torch.tensor(rows) for rows in cut]


def accumulate(
    policy: Policy, batch: Batch, *, max_tokens: int, terms_of: Callable[[Batch, Tensor], Terms], whole: bool = False
) -> dict[str, float]:
    """Gradients of the batch, one micro-batch at a time, and the sums of the loss's parts.

    terms_of(piece, index) scores one piece; index [m] says which of the batch's actions it holds. whole: see `pieces`.
    """
    sums: dict[str, float] = {}
    for _, index, piece in pieces(policy, batch, max_tokens=max_tokens, whole=whole):
        with span("forward"):
            terms = terms_of(piece, index)
        with span("backward"):
            terms.loss.backward()
        for name, value in terms.parts.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: AlgorithmSettings,
    *,
    sampling: Sampling,
    kl_coef: float,
    micro_batch_tokens: int,
    max_grad_norm: float,
    scores: Scores | None = None,
) -> UpdateReport:
    """One optimiser step over the batch. How it is cut into micro-batches changes memory, never the gradient.

    scores: of a batch that fits one micro-batch, where they are known already, with entropy and with their graph. A
    non-finite loss or gradient skips the step.
    """
    weights, denominator = step_weights(batch, settings, constant_length=sampling.max_new_tokens)
    logprobs = torch.empty(len(batch.actions), device=batch.actions.device)

    def terms_of(piece: Batch, index: Tensor) -> Terms:
        assert scores is None or len(piece) == len(batch)
        found = scores or policy.score(piece, sampling=sampling, entropy=True, values=settings.needs_critic)
        logprobs[index] = found.logprobs.detach().float()
        return policy_loss(
            found,
            piece,
            settings,
            kl_coef=kl_coef,
            weights=weights[index],
            denominator=denominator,
            num_actions=len(batch.actions),
        )

    values = accumulate(policy, batch, max_tokens=micro_batch_tokens, terms_of=terms_of)
    with span("optimiser"):
        norm = apply_gradients(policy.module, optimizer, max_norm=max_grad_norm)
    if norm is None:
        return UpdateReport({}, logprobs, skipped=True)
    return UpdateReport(values | {"grad_norm": norm} | _drift(logprobs, batch, settings), logprobs, skipped=False)


def _drift(logprobs: Tensor, batch: Batch, settings: AlgorithmSettings) -> dict[str, float]:
    """How far the policy stands from the one that sampled, and what the clip does about it."""
    if batch.old_logprobs is None:
        return {}
    assert batch.advantages is not None
    statistics = losses.ratio_statistics(logprobs, batch.old_logprobs)
    log_ratios = logprobs - batch.old_logprobs
    if settings.surrogate == "cispo":
        assert settings.clip_high is not None
        capped = log_ratios > math.log1p(settings.clip_high)
        return {"policy_kl": statistics.k3, "clip_fraction": float(capped.float().mean())}
    if settings.surrogate.startswith("sequence"):
        log_ratios = losses.sequence_log_ratios(
            logprobs,
            batch.old_logprobs,
            batch.num_actions,
            length_normalised=settings.surrogate != "sequence_ratio",
        )
    clipped = losses.clip_fraction(
        log_ratios,
        batch.advantages,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
    )
    return {"policy_kl": statistics.k3, "clip_fraction": float(clipped)}
