"""Losses of reward models: scores of whole rows against pairs, rankings or ratings. Flat rows in, scalar out.

A score is a scalar that the model gives to one row; only differences of scores mean something to pairs and rankings.
weights (one an item: a pair, a ranking, a rated row) and denominator are as in `weighted_sum`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.scan import promote, row_sum
from upslope.losses.aggregation import weighted_sum
from upslope.records import unpack


def bradley_terry(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float, weights: Tensor, denominator: float | Tensor
) -> Tensor:
    """- sum of w log s(chosen - rejected - margin) / denominator, s the sigmoid.

    chosen, rejected [P]: the scores of a pair's rows. margin [P] or a number: how much better the chosen one is said
    to be, 0 where nothing is said.
    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; Touvron et al. 2023, arXiv:2307.09288, eq. 2 (margin).
    """
    chosen, rejected = promote(chosen, rejected)
    return weighted_sum(-F.logsigmoid(chosen - rejected - margin), weights=weights, denominator=denominator)


def centering(chosen: Tensor, rejected: Tensor, *, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """sum of w (chosen + rejected)^2 / denominator: pulls the mean score of pairs [P] to 0, which pairs leave open.

    Source: Eisenstein et al. 2023, arXiv:2312.09244, eq. 2.
    """
    chosen, rejected = promote(chosen, rejected)
    return weighted_sum((chosen + rejected).square(), weights=weights, denominator=denominator)


def plackett_luce(
    scores: Tensor, num_items: Tensor, *, top: int | None, weights: Tensor, denominator: float | Tensor
) -> Tensor:
    """- sum of w log p(ranking) / denominator, p(ranking) = prod over k of exp(s[k]) / sum over j >= k of exp(s[j]).

    scores [sum of K] hold the items of each ranking end to end, the best first; num_items K [R] >= 2. top: how many
    first places count (1: only the best of k is known; None: all of them). With K = 2 it is Bradley and Terry's.
    Raises: RecordError for a ranking of fewer than two items.
    Source: Plackett 1975, "The analysis of permutations"; Luce 1959, "Individual choice behavior".
    """
    if int(num_items.min()) < 2:
        raise RecordError("a ranking has fewer than two items, so it ranks nothing; leave it out")
    (scores,) = promote(scores)
    padded, mask = unpack(scores, num_items, fill=-torch.inf)
    left = padded.flip(1).logcumsumexp(1).flip(1)[mask]  # log-sum-exp of an item and all after it
    places = torch.cat([torch.arange(count, device=scores.device) for count in num_items.tolist()])
    counted = places < (len(places) if top is None else top)
    terms = row_sum(torch.where(counted, left - scores, 0.0), num_items)
    return weighted_sum(terms, weights=weights, denominator=denominator)


def rating_regression(scores: Tensor, ratings: Tensor, *, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """sum of w (score - rating)^2 / 2 / denominator; scores, ratings [B] in one unit, ratings without gradient."""
    scores, ratings = promote(scores, ratings.detach())
    return weighted_sum(0.5 * (scores - ratings).square(), weights=weights, denominator=denominator)


def ordinal(
    scores: Tensor, levels: Tensor, thresholds: Tensor, *, weights: Tensor, denominator: float | Tensor
) -> Tensor:
    """- sum of w log p(level) / denominator, where p(level <= k) = s(thresholds[k] - score), s the sigmoid.

    scores [B]; levels [B] int64 in 0 .. K - 1, in order of goodness; thresholds [K - 1], increasing. Only the order of
    ratings is used, not their distances.
    Source: McCullagh 1980, "Regression models for ordinal data", section 2 (proportional odds).
    """
    scores, thresholds = promote(scores, thresholds)
    ends = torch.tensor([-torch.inf, torch.inf]).to(thresholds)
    bounds = torch.cat((ends[:1], thresholds, ends[1:]))
    above, below = bounds[levels + 1] - scores, bounds[levels] - scores
    # log(s(above) - s(below)) = log s(above) + log s(-below) + log(1 - exp(below - above)), each of which is exact
    terms = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    return weighted_sum(-terms, weights=weights, denominator=denominator)
