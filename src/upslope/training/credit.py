"""From rewards and values to advantages: the baseline, credit and scale columns of the presets' table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope import estimators
from upslope.algorithm import AlgorithmSettings
from upslope.estimators import RunningMean
from upslope.records import Batch

_STD_EPS = 1e-6
_RUNNING_MEAN_DECAY = 0.9


@dataclass(frozen=True, slots=True)
class Credit:
    """advantages and returns [M], and the running mean of scores after this batch."""

    advantages: Tensor
    returns: Tensor
    running_mean: RunningMean


def assign_credit(batch: Batch, settings: AlgorithmSettings, running_mean: RunningMean) -> Credit:
    """Advantages of the batch's actions under the settings' baseline, credit and scale; returns are never whitened.

    batch.rewards hold what the actions earned, a KL charge included; with a critic batch.old_values and batch.bootstrap
    hold what it said. Row scores are undiscounted sums.
    """
    assert batch.rewards is not None
    scores = estimators.row_sum(batch.rewards, batch.num_actions)
    returns, advantages = _unscaled(batch, settings, scores, running_mean)
    if settings.scale == "batch_std":
        advantages = estimators.whiten(advantages)
    elif settings.scale == "group_std":
        rows = estimators.row_ids(batch.num_actions)
        std = estimators.group_std(scores, batch.group)[rows]
        advantages = torch.where(std == 0, 0.0, advantages / (std + _STD_EPS))
    after = estimators.running_mean_update(running_mean, scores, decay=_RUNNING_MEAN_DECAY)
    return Credit(advantages, returns, after)


def _unscaled(
    batch: Batch, settings: AlgorithmSettings, scores: Tensor, running_mean: RunningMean
) -> tuple[Tensor, Tensor]:
    """Returns and return - baseline, both [M]."""
    rewards = batch.rewards
    assert rewards is not None
    bootstrap = batch.bootstrap if batch.bootstrap is not None else torch.zeros_like(scores)
    if settings.credit == "gae":
        assert batch.old_values is not None
        advantages = estimators.gae(
            rewards, batch.old_values, batch.num_actions, bootstrap, gamma=settings.gamma, lam=settings.lam
        )
        return advantages + batch.old_values, advantages
    if settings.credit == "n_step":
        assert batch.old_values is not None
        returns = estimators.n_step_returns(
            rewards, batch.old_values, batch.num_actions, bootstrap, gamma=settings.gamma, n=settings.n_step
        )
    elif settings.credit == "row_return":
        returns = scores[estimators.row_ids(batch.num_actions)]
    else:
        returns = estimators.discounted_returns(rewards, batch.num_actions, bootstrap, gamma=settings.gamma)
    return returns, returns - _baseline(batch, settings, scores, running_mean)


def _baseline(batch: Batch, settings: AlgorithmSettings, scores: Tensor, running_mean: RunningMean) -> Tensor:
    """What is subtracted from each action's return, [M]."""
    if settings.baseline == "critic":
        assert batch.old_values is not None
        return batch.old_values
    if settings.baseline == "group_mean":
        rows = estimators.group_mean(scores, batch.group)
    elif settings.baseline == "leave_one_out":
        rows = estimators.leave_one_out(scores, batch.group)
    elif settings.baseline == "batch_mean":
        rows = estimators.batch_mean(scores)
    elif settings.baseline == "running_mean":
        rows = torch.full_like(scores, running_mean.mean)
    else:
        rows = torch.zeros_like(scores)
    return rows[estimators.row_ids(batch.num_actions)]
