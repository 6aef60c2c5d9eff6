"""Baselines of row scores. Groups go by id, never by position: any int64 ids, in any order, of any sizes.

Rows that were not scored are left out of `scores` by the caller, so they enter no baseline. Where all scores of a
group are equal (a group of one included) its baseline equals them bit for bit, so that score - baseline is exactly 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.scan import check_finite, promote


def batch_mean(scores: Tensor) -> Tensor:
    """b[i] = mean of all scores [B], one value a row.

    Row i's own score is part of it: the expected gradient is (B - 1)/B of the policy gradient.
    Raises: RecordError when a score is not finite.
    """
    return group_mean(scores, torch.zeros(scores.shape, dtype=torch.int64, device=scores.device))


def group_mean(scores: Tensor, group: Tensor) -> Tensor:
    """b[i] = mean of scores [B] over the rows that share row i's group [B].

    Row i's own score is part of it: with groups of n the expected gradient is (n - 1)/n of the policy gradient.
    Raises: RecordError when shapes disagree or a score is not finite.
    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2.
    """
    return _group_moments(scores, group)[0]


def leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    """b[i] = mean of scores [B] over the other rows of row i's group [B]; a group of one gets its own score.

    The expected gradient is exactly the policy gradient.
    Raises: RecordError when shapes disagree or a score is not finite.
    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024,
    arXiv:2402.14740, section 3.3.
    """
    mean, _, count = _group_moments(scores, group)
    return mean - (promote(scores)[0] - mean) / (count - 1).clamp(min=1)


def group_std(scores: Tensor, group: Tensor) -> Tensor:
    """s[i] = sample standard deviation (n - 1) of scores [B] over row i's group [B]; exactly 0 where max == min.

    Raises: RecordError when shapes disagree or a score is not finite.
    """
    return _group_moments(scores, group)[1]


def scale_by_group_std(advantages: Tensor, scores: Tensor, group: Tensor, *, eps: float) -> Tensor:
    """A[i] / (s[i] + eps) with s the group's sample standard deviation; exactly 0 where the group's max == min.

    advantages, scores, group [B], one value a row; eps in units of the scores.
    Raises: RecordError when shapes disagree or a score is not finite.
    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2.
    """
    std = group_std(scores, group)
    return torch.where(std == 0, 0.0, advantages / (std + eps))


def _group_moments(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sample standard deviation and size of each row's group, all [B]."""
    if scores.dim() != 1 or scores.shape != group.shape:
        raise RecordError(
            f"scores of shape {tuple(scores.shape)} and group of shape {tuple(group.shape)} must be one value per row"
        )
    check_finite("scores", scores)
    (scores,) = promote(scores)
    ids, index = torch.unique(group, return_inverse=True)
    zeros = scores.new_zeros(ids.shape[0])

    def total(x: Tensor) -> Tensor:
        return zeros.index_add(0, index, x)[index]

    low = zeros.scatter_reduce(0, index, scores, "amin", include_self=False)[index]
    high = zeros.scatter_reduce(0, index, scores, "amax", include_self=False)[index]
    count = total(torch.ones_like(scores))
    mean = torch.where(low == high, scores, total(scores) / count)
    variance = total((scores - mean).square()) / (count - 1).clamp(min=1)
    return mean, torch.where(low == high, 0.0, variance.sqrt()), count


@dataclass(frozen=True, slots=True)
class RunningMean:
    """Exponentially forgetting mean of past scores; `weight` is the discounted number of scores behind `mean`.

    Two floats, so that JSON restores it bit for bit. Before any score the mean is 0.
    """

    mean: float = 0.0
    weight: float = 0.0


def running_mean_update(state: RunningMean, scores: Tensor, *, decay: float) -> RunningMean:
    """The state after one batch of scores [B]: earlier scores weigh `decay` times what they did before.

    decay in [0, 1]: 1 is the plain mean of all scores so far, 0 the mean of this batch. The baseline of a batch is
    `state.mean` from before its own update: a constant to it, so the gradient stays unbiased.
    Raises: RecordError when a score is not finite.
    Source: Williams 1992, "Simple statistical gradient-following algorithms", section 6 (reinforcement comparison).
    """
    check_finite("scores", scores)
    past = decay * state.weight
    weight = past + scores.numel()
    if not weight:
        return state
    return RunningMean((past * state.mean + math.fsum(scores.tolist())) / weight, weight)
