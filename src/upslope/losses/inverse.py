"""Inverse reinforcement learning: losses whose minimum explains demonstrations by a reward. Flat in, scalar out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.scan import next_values, promote
from upslope.losses.aggregation import weighted_sum


def inverse_q(
    action_values: Tensor,
    values: Tensor,
    num_actions: Tensor,
    bootstrap: Tensor,
    *,
    gamma: float,
    coef: float,
    weights: Tensor,
    denominator: float | Tensor,
) -> Tensor:
    """sum of w [V(s) - Q(s, a) + coef (Q(s, a) - gamma V(s'))^2] / denominator over the actions of demonstrations.

    action_values Q(s, a) [M] are the logits of the actions taken and values V(s) [M] the log-sum-exp of all logits, so
    that V - Q = - log pi(a|s): maximum likelihood, with the recovered reward held small. V(s') is the value of the
    row's next action, and bootstrap [B] after its last: 0 where the row ended. Both terms carry gradient.
    Source: Wulfmeier et al. 2024, arXiv:2409.01369, section 3; Garg et al. 2021, arXiv:2106.12142 (IQ-Learn).
    """
    rewards = inverse_q_rewards(action_values, values, num_actions, bootstrap, gamma=gamma)
    action_values, values = promote(action_values, values)
    return weighted_sum(values - action_values + coef * rewards.square(), weights=weights, denominator=denominator)


def inverse_q_rewards(
    action_values: Tensor, values: Tensor, num_actions: Tensor, bootstrap: Tensor, *, gamma: float
) -> Tensor:
    """r(s, a) = Q(s, a) - gamma V(s') [M]: the reward under which Q is the soft-optimal action value.

    Arguments as in `inverse_q`. At gamma 1 the rewards of an ended row add up to V(start) + log pi(row).
    Source: Garg et al. 2021, arXiv:2106.12142 (the inverse soft Bellman operator).
    """
    action_values, values, bootstrap = promote(action_values, values, bootstrap)
    return action_values - gamma * next_values(values, num_actions, bootstrap)


def discriminator_loss(
    logits: Tensor, is_demonstration: Tensor, *, weights: Tensor, denominator: float | Tensor
) -> Tensor:
    """- sum of w [log D for demonstrations, log(1 - D) for the policy's own] / denominator, D = s(logits).

    logits [B] or [M], one a row or an action; is_demonstration, of the same shape, bool.
    Source: Ho & Ermon 2016, arXiv:1606.03476, eq. 14.
    """
    (logits,) = promote(logits)
    signs = torch.where(is_demonstration, 1.0, -1.0).to(logits)
    return weighted_sum(-F.logsigmoid(signs * logits), weights=weights, denominator=denominator)


def airl_logits(rewards: Tensor, logprobs: Tensor) -> Tensor:
    """logit D = r - log pi, for D = exp(r) / (exp(r) + pi); both of one shape, logprobs without gradient.

    Trained to tell demonstrations from the policy's own, r approaches log p(demonstration) up to a constant a prompt.
    Source: Fu et al. 2018, arXiv:1710.11248, section 4.
    """
    rewards, logprobs = promote(rewards, logprobs.detach())
    return rewards - logprobs


def adversarial_reward(logits: Tensor, *, form: str) -> Tensor:
    """What a discriminator pays the policy: "airl" logit D = log D - log(1 - D), "gail" - log(1 - D).

    A discriminator that knows nothing (D = 1/2) pays 0 by the first form and log 2 = 0.69 by the second: an action or a
    row more is then a gain, so token-level GAIL makes rows long and never pays a negative reward.
    Source: Fu et al. 2018, arXiv:1710.11248, section 4; Ho & Ermon 2016, arXiv:1606.03476; Kostrikov et al. 2019,
    arXiv:1809.02925, section 4.1 (the bias).
    """
    (logits,) = promote(logits.detach())
    return logits if form == "airl" else F.softplus(logits)


def max_ent_loss(weights: Tensor, features: Tensor, expected: Tensor, base_logprobs: Tensor) -> Tensor:
    """log Z(w) - w . expected, Z(w) = sum over rows y of base(y) exp(w . features(y)): convex, a scalar.

    weights w [F] of a linear reward; features [R, F] of every row there is; expected [F], the demonstrations' mean
    features; base_logprobs [R] of the prior that a reward of 0 leaves unchanged. Its gradient is the feature gap
    E_w[features] - expected.
    Source: Ziebart et al. 2008, "Maximum entropy inverse reinforcement learning".
    """
    weights, features, expected, base_logprobs = promote(weights, features, expected, base_logprobs)
    return torch.logsumexp(base_logprobs + features @ weights, 0) - weights @ expected


def max_ent_logprobs(weights: Tensor, features: Tensor, base_logprobs: Tensor) -> Tensor:
    """log p_w(y) [R] of every row: log base(y) + w . features(y) - log Z(w). Arguments as in `max_ent_loss`."""
    weights, features, base_logprobs = promote(weights, features, base_logprobs)
    return (base_logprobs + features @ weights).log_softmax(0)


@torch.no_grad()
def max_ent_weights(
    features: Tensor, expected: Tensor, base_logprobs: Tensor, *, l2: float, tolerance: float, max_steps: int = 200
) -> Tensor:
    """w [F] that minimises `max_ent_loss` + l2 / 2 |w|^2, by Newton's method with step halving, in float64.

    Where no reward reproduces the demonstrations' features exactly (a feature that every demonstration has), the
    minimum without l2 is at infinity. tolerance: of the gradient, in the features' unit.
    Raises: RecordError where it is not reached in max_steps.
    """
    features, expected, base = features.double(), expected.double(), base_logprobs.double()
    weights = torch.zeros_like(expected)

    def objective(w: Tensor) -> Tensor:
        return max_ent_loss(w, features, expected, base) + 0.5 * l2 * w.square().sum()

    for _ in range(max_steps):
        probabilities = max_ent_logprobs(weights, features, base).exp()
        mean = probabilities @ features
        gradient = mean - expected + l2 * weights
        if float(gradient.abs().max()) <= tolerance:
            return weights
        spread = features - mean
        hessian = spread.T @ (probabilities[:, None] * spread) + l2 * torch.eye(len(weights)).to(weights)
        step = torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]
        size, before, slope = 1.0, objective(weights), gradient @ step
        while objective(weights - size * step) > before - 1e-4 * size * slope and size > 1e-10:
            size /= 2
        weights = weights - size * step
    raise RecordError(
        f"no linear reward reproduces these features to {tolerance:g} in {max_steps} steps; give l2 > 0, or check that "
        "not every demonstration has a feature that other rows lack"
    )
