"""The critic's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.estimators.scan import promote
from upslope.losses.aggregation import weighted_sum


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    *,
    clip: float | None,
    weights: Tensor,
    denominator: float | Tensor,
) -> Tensor:
    """sum of w[t] max((V - G)^2, (clip(V, V_old - clip, V_old + clip) - G)^2)[t] / 2 / denominator.

    values [M] (differentiable), old_values [M] (the critic's at rollout; unused where clip is None) and returns [M],
    the targets, which are never whitened; neither of the last two receives gradient. clip is in units of return.
    Source: Schulman et al. 2017, arXiv:1707.06347, section 5; the clip from its code, openai/baselines, ppo2.
    """
    values, returns = promote(values, returns.detach())
    error = (values - returns).square()
    if clip is not None:
        assert old_values is not None, "a value clip needs the values of the rollout"
        (old,) = promote(old_values.detach())
        clipped = old + (values - old).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns).square())
    return weighted_sum(0.5 * error, weights=weights, denominator=denominator)
