"""The gap between the engine that sampled and the trainer that recomputed: its size, and its correction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.scan import promote, row_ids, row_sum


def truncated_importance_weights(old_logprobs: Tensor, engine_logprobs: Tensor, *, cap: float) -> Tensor:
    """min(exp(old_logprobs - engine_logprobs), cap) [M], without gradient.

    Multiplied into a loss's weights (not into its denominator) it corrects for actions that were sampled by an
    engine whose log-probabilities [M] differ from the trainer's own.
    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; Ionides 2008,
    "Truncated importance sampling".
    """
    old_logprobs, engine_logprobs = promote(old_logprobs.detach(), engine_logprobs.detach())
    return (old_logprobs - engine_logprobs).exp().clamp(max=cap)


def row_truncated_importance_weights(
    old_logprobs: Tensor, engine_logprobs: Tensor, num_actions: Tensor, *, cap: float
) -> Tensor:
    """min(exp(sum over the row of (old_logprobs - engine_logprobs)), cap), at each action of the row [M], no gradient.

    The weight of the whole row: unbiased below the cap, where per-action weights are not, at a larger variance.
    """
    old_logprobs, engine_logprobs = promote(old_logprobs.detach(), engine_logprobs.detach())
    rows = row_sum(old_logprobs - engine_logprobs, num_actions).exp().clamp(max=cap)
    return rows[row_ids(num_actions)]


@dataclass(frozen=True, slots=True)
class RatioStatistics:
    """How far apart two policies are on the same actions.

    k3: estimate of KL(old, new) in nats an action; effective_sample_size: (sum w)^2 / (M sum w^2) in (0, 1] for
    w = exp(new - old), 1 where the policies agree; max_deviation: the largest |w - 1|.
    """

    k3: float
    effective_sample_size: float
    max_deviation: float


def ratio_statistics(logprobs: Tensor, old_logprobs: Tensor) -> RatioStatistics:
    """Statistics of exp(logprobs - old_logprobs) [M] over actions sampled from the old policy.

    For the engine/trainer gap give (old_logprobs, engine_logprobs), for the update's drift (logprobs, old_logprobs).
    Raises: RecordError when there are no actions.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html (k3); Kong 1992 (effective sample size).
    """
    if not logprobs.numel():
        raise RecordError("there are no actions to compare two policies on; drop the empty batch")
    logprobs, old_logprobs = promote(logprobs.detach(), old_logprobs.detach())
    log_ratios = logprobs - old_logprobs
    scaled = (log_ratios - log_ratios.max()).exp()
    effective = scaled.sum().square() / (scaled.numel() * scaled.square().sum())
    deviation = log_ratios.expm1()
    return RatioStatistics(float((deviation - log_ratios).mean()), float(effective), float(deviation.abs().max()))
