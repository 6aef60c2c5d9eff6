"""Policy losses: functions whose negative gradient improves the policy. Flat [M] in, scalar out.

logprobs [M] (current policy, differentiable), old_logprobs [M] (the policy that sampled) in nats and advantages [M]
at the same actions; only logprobs receives gradient. weights [M] and denominator as in `weighted_sum`. Ratios are
exp(logprobs - old_logprobs). A clip of None does not clip.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upslope.estimators.scan import promote, row_ids, row_sum
from upslope.losses.aggregation import weighted_sum


def reinforce(logprobs: Tensor, advantages: Tensor, *, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """- sum of w[t] A[t] log pi[t] / denominator.

    Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
    learning", section 4.
    """
    logprobs, advantages = promote(logprobs, advantages.detach())
    return weighted_sum(-advantages * logprobs, weights=weights, denominator=denominator)


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    weights: Tensor,
    denominator: float | Tensor,
) -> Tensor:
    """- sum of w[t] min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)[t] / denominator.

    With dual_clip c > 1 the term of an action of negative advantage is c A at least: beyond a ratio of c its gradient
    is 0. Which actions a clip deprives of their gradient is said by `clip_mask`.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; Yu et al. 2025, arXiv:2503.14476, eq. 10 (clip_high apart
    from clip_low); Ye et al. 2020, arXiv:1912.09729, eq. 5 (dual clip).
    """
    logprobs, old_logprobs, advantages = promote(logprobs, old_logprobs.detach(), advantages.detach())
    objective = _clipped(torch.exp(logprobs - old_logprobs), advantages, clip_low, clip_high)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return weighted_sum(-objective, weights=weights, denominator=denominator)


def sequence_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    num_actions: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
    length_normalised: bool,
    token_level: bool,
    weights: Tensor,
    denominator: float | Tensor,
) -> Tensor:
    """- sum of w[t] min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)[t] / denominator, s the ratio of t's whole row.

    s[i] = exp(sum over row i of (logprobs - old_logprobs)), its n[i]-th root where length_normalised (GSPO). The row's
    term stands at each of its actions, so the weights of `rows_token_mean`, which add to 1 in a row, make it one term
    a row. num_actions [B]: rows are whole. With token_level (GSPO-token) s[t] = sg(s[i]) pi[t] / sg(pi[t]), sg being
    stop-gradient: the same value, but each action's own advantage moves that action alone; the gradient at equal
    advantages in a row is that of the length-normalised ratio.
    Source: Zheng et al. 2025, arXiv:2507.18071, eq. 5, 7 (GSPO) and 13, 14 (GSPO-token); Ahmadian et al. 2024,
    arXiv:2402.14740 (the un-normalised ratio, on-policy the row's REINFORCE).
    """
    logprobs, old_logprobs, advantages = promote(logprobs, old_logprobs.detach(), advantages.detach())
    log_ratios = sequence_log_ratios(logprobs, old_logprobs, num_actions, length_normalised=length_normalised)
    if token_level:
        log_ratios = log_ratios.detach() + logprobs - logprobs.detach()
    objective = _clipped(log_ratios.exp(), advantages, clip_low, clip_high)
    return weighted_sum(-objective, weights=weights, denominator=denominator)


def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float,
    weights: Tensor,
    denominator: float | Tensor,
) -> Tensor:
    """- sum of w[t] sg(clip(ratio, 1 - clip_low, 1 + clip_high))[t] A[t] log pi[t] / denominator.

    The clipped ratio is a constant, so that no action loses its gradient; it is at most 1 + clip_high (not
    clip_high), and unbounded below where clip_low is None, as published.
    Source: MiniMax 2025, arXiv:2506.13585, eq. 4 and 5.
    """
    logprobs, old_logprobs, advantages = promote(logprobs, old_logprobs.detach(), advantages.detach())
    ratios = torch.exp(logprobs.detach() - old_logprobs).clamp(*_clip_range(clip_low, clip_high))
    return weighted_sum(-ratios * advantages * logprobs, weights=weights, denominator=denominator)


def sequence_log_ratios(
    logprobs: Tensor, old_logprobs: Tensor, num_actions: Tensor, *, length_normalised: bool
) -> Tensor:
    """log s [M] at each action: its row's sum of logprobs - old_logprobs, their mean where length_normalised."""
    totals = row_sum(logprobs - old_logprobs, num_actions)
    return (totals / num_actions if length_normalised else totals)[row_ids(num_actions)]


def clip_mask(
    log_ratios: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
) -> Tensor:
    """True [M] at the actions whose gradient the clip of `clipped_surrogate` or `sequence_surrogate` sets to 0.

    log_ratios [M] = logprobs - old_logprobs, or `sequence_log_ratios`; advantages [M]. Its mean is the clip fraction.
    CISPO bounds weights and kills no gradient.
    """
    log_ratios, advantages = promote(log_ratios, advantages)
    ratios = log_ratios.exp()
    low, high = _clip_range(clip_low, clip_high)
    too_high = (advantages > 0) & (ratios > high)
    too_low = (advantages < 0) & ((ratios < low) | (ratios > (math.inf if dual_clip is None else dual_clip)))
    return too_high | too_low


def clip_fraction(
    log_ratios: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
) -> Tensor:
    """Fraction of actions whose gradient the clip sets to 0, a scalar: the mean of `clip_mask`."""
    mask = clip_mask(log_ratios, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return mask.to(torch.float32).mean()


def _clip_range(clip_low: float | None, clip_high: float | None) -> tuple[float, float]:
    return 0.0 if clip_low is None else 1.0 - clip_low, math.inf if clip_high is None else 1.0 + clip_high


def _clipped(ratios: Tensor, advantages: Tensor, clip_low: float | None, clip_high: float | None) -> Tensor:
    """min(ratio A, clip(ratio) A) [M]."""
    low, high = _clip_range(clip_low, clip_high)
    return torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages)
