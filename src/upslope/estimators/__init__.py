"""Estimators: pure functions over packed actions [M] and their rows [B]. They import torch only."""

from upslope.estimators.advantages import gae
from upslope.estimators.baselines import (
    RunningMean,
    batch_mean,
    group_mean,
    group_std,
    leave_one_out,
    running_mean_update,
    scale_by_group_std,
)
from upslope.estimators.kl import AdaptiveKL, FixedKL, entropy, exact_kl, kl_estimate, kl_rewards
from upslope.estimators.moments import Moments, whiten
from upslope.estimators.returns import discounted_returns, lambda_returns, n_step_returns, vtrace
from upslope.estimators.scan import reverse_scan, row_ends, row_ids, row_starts, row_sum, windowed_scan

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "Moments",
    "RunningMean",
    "batch_mean",
    "discounted_returns",
    "entropy",
    "exact_kl",
    "gae",
    "group_mean",
    "group_std",
    "kl_estimate",
    "kl_rewards",
    "lambda_returns",
    "leave_one_out",
    "n_step_returns",
    "reverse_scan",
    "row_ends",
    "row_ids",
    "row_starts",
    "row_sum",
    "running_mean_update",
    "scale_by_group_std",
    "vtrace",
    "whiten",
    "windowed_scan",
]
