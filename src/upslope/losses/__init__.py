"""Losses: packed actions [M] -> scalar, a weighted sum over a denominator the caller gives. They import torch only."""

from upslope.losses.aggregation import aggregation, weighted_sum
from upslope.losses.importance import (
    RatioStatistics,
    ratio_statistics,
    row_truncated_importance_weights,
    truncated_importance_weights,
)
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
    "aggregation",
    "cispo",
    "clip_fraction",
    "clip_mask",
    "clipped_surrogate",
    "ratio_statistics",
    "reinforce",
    "row_truncated_importance_weights",
    "sequence_log_ratios",
    "sequence_surrogate",
    "truncated_importance_weights",
    "value_loss",
    "weighted_sum",
]
