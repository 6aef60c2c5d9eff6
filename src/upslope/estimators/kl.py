"""Kullback-Leibler divergence from a frozen reference, by sample or exact; its coefficient; entropy. All in nats."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.scan import promote

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KLEstimator) -> Tensor:
    """Per-action estimate [M] of KL(policy, reference) in nats; with r = log(policy/reference): k1 = r, k2 = r^2/2,
    k3 = exp(-r) - 1 + r.

    logprobs, ref_logprobs [M] at actions sampled from the policy. As a number: k1 and k3 are unbiased, k3 never
    negative and usually of smaller variance; k2 is biased, by little while the two are close.

    As a term of the loss, differentiated at fixed samples, the expected gradient at each state is
    - k1: zero. It restrains nothing; use it in the reward;
    - k2: the gradient of KL(policy, reference), exactly;
    - k3: the gradient of KL(reference, policy), the other direction: close near the reference, wrong far from it.
    All of them leave out that today's action changes which states tomorrow's divergence is measured in.

    In the reward (`kl_rewards`, through returns), k1 gives the gradient of the whole row's KL, that later part
    included. k3 in the reward gives grad KL(policy, reference) - grad KL(reference, policy), and k2 neither: wrong.
    Raises: RecordError when the estimator is unknown.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html; Tang and Munos 2025, arXiv:2506.09477.
    """
    logprobs, ref_logprobs = promote(logprobs, ref_logprobs)
    log_ratio = logprobs - ref_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return (-log_ratio).expm1() + log_ratio
    raise RecordError(f"there is no KL estimator {estimator!r}; choose k1, k2 or k3")


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(policy, reference) = sum over k of p[k] (log p[k] - log q[k]) [m], in nats, from logits [m, K].

    Choices that the policy cannot make (logit -inf) count 0; it is +inf where the reference bans what the policy
    can do.
    """
    logits, ref_logits = promote(logits, ref_logits)
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    log_ratio = (logprobs - ref_logits.log_softmax(-1)).masked_fill(probabilities == 0, 0.0)
    return (probabilities * log_ratio).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """`H = -sum over k of p[k] log p[k]`, [m], in nats, from logits [m, K]; banned choices (logit -inf) count 0."""
    (logits,) = promote(logits)
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    return -(probabilities * logprobs.masked_fill(probabilities == 0, 0.0)).sum(-1)


def kl_rewards(rewards: Tensor, kl: Tensor, *, coef: float) -> Tensor:
    """`r[t] - coef kl[t]`, [M]: the divergence charged to the action that caused it.

    rewards, kl [M], kl in nats and detached here. A row's rewards then sum to its score - coef times its KL.
    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2.
    """
    return rewards - coef * kl.detach()


@dataclass(frozen=True, slots=True)
class FixedKL:
    """A KL coefficient that stays as it is."""

    coef: float

    def update(self, kl: float, num_rows: int) -> FixedKL:  # noqa: ARG002 - the signature it shares with AdaptiveKL
        """Itself, whatever was measured."""
        return self


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A KL coefficient that holds the KL of a row near `target` nats, by at most 20% every `horizon` rows.

    Three floats, so that JSON restores it bit for bit.
    """

    coef: float
    target: float
    horizon: float

    def update(self, kl: float, num_rows: int) -> AdaptiveKL:
        """coef (1 + e num_rows / horizon), with e = kl / target - 1 clipped to [-0.2, 0.2].

        kl is the mean KL of a row, summed over its actions, in nats, over num_rows rows.
        Raises: RecordError when kl is not finite.
        Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
        """
        if not math.isfinite(kl):
            raise RecordError(f"the measured KL is {kl}, which no coefficient can steer; lower the learning rate")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return dataclasses.replace(self, coef=self.coef * (1.0 + error * num_rows / self.horizon))
