"""Losses: packed actions [M] -> scalar, a weighted sum over a denominator the caller gives. They import torch only."""

from upslope.losses.aggregation import aggregation, weighted_sum
from upslope.losses.importance import (
    RatioStatistics,
    ratio_statistics,
    row_truncated_importance_weights,
    truncated_importance_weights,
)
from upslope.losses.inverse import (
    adversarial_reward,
    airl_logits,
    discriminator_loss,
    inverse_q,
    inverse_q_rewards,
    max_ent_logprobs,
    max_ent_loss,
    max_ent_weights,
)
from upslope.losses.preference import dpo, ipo, kto, kto_reference_kl, orpo, robust_dpo
from upslope.losses.reward_model import bradley_terry, centering, ordinal, plackett_luce, rating_regression
from upslope.losses.surrogate import (
    cispo,
    clip_fraction,
    clip_mask,
    clipped_surrogate,
    reinforce,
    sequence_log_ratios,
    sequence_surrogate,
)
from upslope.losses.value import value_loss

__all__ = [
    "RatioStatistics",
    "adversarial_reward",
    "aggregation",
    "airl_logits",
    "bradley_terry",
    "centering",
    "cispo",
    "clip_fraction",
    "clip_mask",
    "clipped_surrogate",
    "discriminator_loss",
    "dpo",
    "inverse_q",
    "inverse_q_rewards",
    "ipo",
    "kto",
    "kto_reference_kl",
    "max_ent_logprobs",
    "max_ent_loss",
    "max_ent_weights",
    "ordinal",
    "orpo",
    "plackett_luce",
    "rating_regression",
    "ratio_statistics",
    "reinforce",
    "robust_dpo",
    "row_truncated_importance_weights",
    "sequence_log_ratios",
    "sequence_surrogate",
    "truncated_importance_weights",
    "value_loss",
    "weighted_sum",
]
