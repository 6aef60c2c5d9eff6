"""A model judged by what another one wrote: estimates from logged rollouts, to screen, never to crown, candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from upslope.errors import DataError
from upslope.evaluation.clustered import clustered_mean
from upslope.evaluation.intervals import Interval
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling
from upslope.records import Rollout, collate

LEAST_SHARE = 0.5
"""Below this share of effective samples the weights rest on a few rollouts, and nothing is estimated."""


@dataclass(frozen=True, slots=True)
class Screening:
    """What a candidate would have earned, by the weights exp(log p_candidate - log p_logged) of logged rollouts.

    self_normalised, doubly_robust: estimates with t intervals over prompts; None where `refused` says why. share:
    effective samples, (sum w)^2 / (n sum w^2). mean_weight: 1 within its own noise, where the log-probabilities are
    those that were sampled by. logged: the mean reward as logged. To be compared with rollouts of the candidate's own
    before anything is decided.
    """

    self_normalised: Interval | None
    doubly_robust: Interval | None
    logged: float
    share: float
    mean_weight: float
    refused: str | None


def screen(
    log_ratios: np.ndarray,
    rewards: np.ndarray,
    *,
    baselines: np.ndarray | None = None,
    controls: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    confidence: float = 0.95,
) -> Screening:
    """sum(w r) / sum(w), and the doubly robust mean(v + w (r - q)), over n logged rollouts.

    log_ratios [n]: log-probability of the whole rollout under the candidate less that under the policy that wrote it.
    baselines v [n]: what a critic expects of the candidate before the rollout, and controls [n] its estimate q of the
    rollout's own reward; with q's mean under the candidate being v, a right critic or right weights suffice. Without
    them there is no doubly robust estimate; v = q = b of the prompt is a plain baseline. Standard errors by the delta
    method, robust to clusters (a prompt's rollouts).
    Refused (the result says why, and has no estimate): an effective share below 0.5, or weights whose mean is more than
    4 standard errors, and 5%, from 1.
    Raises: DataError for a number that is not finite, or one cluster.
    Source: Hajek 1971; Dudik, Langford & Li 2011, arXiv:1103.4601, eq. 2; Kish 1965 for the share.
    """
    weights, rewards = np.exp(np.asarray(log_ratios, dtype=np.float64)), np.asarray(rewards, dtype=np.float64)
    of_weights = clustered_mean(weights, clusters)
    mean_weight = float(of_weights.estimate)
    share = float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
    refused = _refusal(share, mean_weight, float(of_weights.se))
    normalised = robust = None
    logged = float(clustered_mean(rewards, clusters).estimate)
    if refused is None:
        ratio = float((weights * rewards).sum() / weights.sum())
        normalised = _interval(ratio + weights * (rewards - ratio) / mean_weight, clusters, confidence)
        if baselines is not None:
            predicted = baselines if controls is None else controls
            robust = _interval(baselines + weights * (rewards - predicted), clusters, confidence)
    return Screening(normalised, robust, logged, share, mean_weight, refused)


def log_ratios(rollouts: Sequence[Rollout], candidate: Policy, *, sampling: Sampling, logged: Sampling) -> list[float]:
    """log p_candidate - log p_logged of every rollout's actions together.

    sampling: what the candidate would be sampled by; logged: what the rollouts were sampled by. Their log-probabilities
    are the logged ones.
    Raises: DataError for rollouts without log-probabilities, or sampled with a truncation (top-k, top-p, greedy): what
    the candidate may say beyond it was never tried, and no weight can make up for that.
    """
    for name, each in (("logged", logged), ("candidate's", sampling)):
        if each.greedy or each.top_k is not None or each.top_p is not None:
            raise DataError(f"the {name} sampling is truncated (greedy, top-k or top-p), so weights mean nothing")
    for rollout in rollouts:
        if not rollout.actions or len(rollout.engine_logprobs) != len(rollout.actions):
            raise DataError(
                f"rollout {rollout.sample} of prompt {rollout.prompt.id} has {len(rollout.actions)} actions and "
                f"{len(rollout.engine_logprobs)} log-probabilities; without them it cannot be weighed"
            )
    batch, _ = collate(rollouts)
    found = torch.empty(batch.num_rows, dtype=torch.float64)
    with torch.no_grad():
        for rows in candidate.micro_batches(batch, max_tokens=4096):
            piece = batch.select(rows).to(candidate.device)
            gap = candidate.score(piece, sampling=sampling).logprobs.double() - piece.engine_logprobs.double()
            found[rows] = torch.stack([row.sum() for row in piece.split_rows(gap)]).cpu()
    return [float(value) for value in found]


def _refusal(share: float, mean_weight: float, se: float) -> str | None:
    if not math.isfinite(mean_weight) or share < LEAST_SHARE:
        return f"the weights leave {share:.0%} of the samples effective, below {LEAST_SHARE:.0%}: sample the candidate"
    if abs(mean_weight - 1.0) > max(4.0 * se, 0.05):
        return f"the weights average to {mean_weight:.3f} and not to 1: they are not those the rollouts were sampled by"
    return None


def _interval(values: np.ndarray, clusters: np.ndarray | None, confidence: float) -> Interval:
    mean = clustered_mean(values, clusters)
    low, high = mean.bounds(confidence)
    return Interval(float(mean.estimate), float(low), float(high))
