"""Preference losses without a reward model: flat rows in, scalar out.

A log-ratio is log pi(y|x) - log pi_ref(y|x), summed over the actions of a row, in nats, without gradient of the
reference: `row_sum(logprobs - ref_logprobs, num_actions)`. A pair has one chosen and one rejected row, so chosen and
rejected are [P] for P pairs; weights [P] and denominator are as in `weighted_sum`. beta > 0 prices a nat of KL.

Online DPO is `dpo` on pairs that the policy itself wrote and a reward has judged; SPIN is `dpo` on a demonstration
against a row of the reference's, whose gradient vanishes in expectation where the two are distributed alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.errors import RecipeError
from upslope.estimators.scan import promote
from upslope.losses.aggregation import weighted_sum


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
    weights: Tensor,
    denominator: float | Tensor,
) -> Tensor:
    """- sum of w [(1 - e) log s(beta d) + e log s(-beta d)] / denominator, d = chosen - rejected, s the sigmoid.

    chosen, rejected [P] are log-ratios. label_smoothing e in [0, 1/2) is the share of labels believed to be flipped
    (conservative DPO): its minimum is no longer at infinity, but at log((1 - e) / e) / beta.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, "A note on DPO with noisy preferences" (e >
    0); Chen et al. 2024, arXiv:2401.01335, eq. 4.7 (SPIN).
    """
    scaled = beta * _difference(chosen, rejected)
    terms = (1.0 - label_smoothing) * F.logsigmoid(scaled) + label_smoothing * F.logsigmoid(-scaled)
    return weighted_sum(-terms, weights=weights, denominator=denominator)


def robust_dpo(
    chosen: Tensor, rejected: Tensor, *, beta: float, flip_rate: float, weights: Tensor, denominator: float | Tensor
) -> Tensor:
    """- sum of w [(1 - e) log s(beta d) - e log s(-beta d)] / (1 - 2 e) / denominator, d = chosen - rejected.

    An unbiased estimate of DPO's loss on clean labels, where each label [P] was flipped with probability e = flip_rate:
    (1 - e) times its value at the right label plus e times that at the flipped one is DPO's.
    Raises: RecipeError for a flip_rate outside [0, 1/2), at which labels say nothing.
    Source: Chowdhury et al. 2024, arXiv:2403.00409, section 3.
    """
    if not 0.0 <= flip_rate < 0.5:
        raise RecipeError(f"flip_rate is {flip_rate}, but must lie in [0, 0.5): at a half, labels say nothing")
    scaled = beta * _difference(chosen, rejected)
    terms = ((1.0 - flip_rate) * F.logsigmoid(scaled) - flip_rate * F.logsigmoid(-scaled)) / (1.0 - 2.0 * flip_rate)
    return weighted_sum(-terms, weights=weights, denominator=denominator)


def ipo(chosen: Tensor, rejected: Tensor, *, beta: float, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """sum of w (d - 1 / (2 beta))^2 / denominator, d = chosen - rejected.

    The preference gap is driven to 1 / (2 beta), not to infinity. Give mean log-ratios an action (`rows / num_actions`)
    for the form that the authors and TRL use; sums make the target depend on length.
    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17 (beta is its tau).
    """
    error = _difference(chosen, rejected) - 1.0 / (2.0 * beta)
    return weighted_sum(error.square(), weights=weights, denominator=denominator)


def kto(
    log_ratios: Tensor,
    desirable: Tensor,
    *,
    reference_kl: Tensor | float,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    weights: Tensor,
    denominator: float | Tensor,
) -> Tensor:
    """sum of w l [1 - s(beta (r - z))] / denominator for desirable rows, with s(beta (z - r)) for the others.

    Rows need no partner: log_ratios r [B], desirable [B] bool. z = reference_kl is the KL from the reference, estimated
    by the caller from mismatched rows (see `kto_reference_kl`); it carries no gradient. l is desirable_weight or
    undesirable_weight; weigh the two kinds so that l times their number is about equal.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1.
    """
    (log_ratios,) = promote(log_ratios)
    anchor = reference_kl.detach() if isinstance(reference_kl, Tensor) else reference_kl
    signs = torch.where(desirable, 1.0, -1.0).to(log_ratios)
    utilities = torch.sigmoid(signs * beta * (log_ratios - anchor))
    prices = torch.where(desirable, desirable_weight, undesirable_weight).to(log_ratios)
    return weighted_sum(prices * (1.0 - utilities), weights=weights, denominator=denominator)


def kto_reference_kl(mismatched: Tensor) -> Tensor:
    """max(0, mean of log pi(y'|x) - log pi_ref(y'|x)), a scalar without gradient, over rows y' of other prompts [B].

    A biased estimate of KL(policy, reference), as published: what is wanted is a common zero, not the KL itself.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1.
    """
    (mismatched,) = promote(mismatched.detach())
    return mismatched.mean().clamp(min=0.0)


def orpo(chosen: Tensor, rejected: Tensor, *, beta: float, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """sum of w [- chosen - beta log s(log odds(chosen) - log odds(rejected))] / denominator.

    chosen, rejected [P] are mean log-probabilities an action (not ratios: there is no reference) below 0;
    odds = p / (1 - p) at p = exp of the mean. The first term is the supervised loss on the chosen rows.
    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7 (beta is its lambda).
    """
    chosen, rejected = promote(chosen, rejected)
    odds_ratio = _log_odds(chosen) - _log_odds(rejected)
    return weighted_sum(-chosen - beta * F.logsigmoid(odds_ratio), weights=weights, denominator=denominator)


def _difference(chosen: Tensor, rejected: Tensor) -> Tensor:
    chosen, rejected = promote(chosen, rejected)
    return chosen - rejected


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p < 0; 1 - p = -expm1(log p) loses nothing near p = 1."""
    return logprobs - torch.log(-torch.expm1(logprobs))
