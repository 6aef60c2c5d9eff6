"""Returns: what a row earns from each of its actions on. Flat [M] in, flat [M] out; every row stands alone.

Rows that terminated have bootstrap 0; rows that were cut have V at their last token. Non-finite inputs raise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.advantages import gae
from upslope.estimators.scan import (
    check_packed,
    next_values,
    promote,
    reverse_scan,
    row_decay,
    row_ends,
    windowed_scan,
)


def discounted_returns(rewards: Tensor, num_actions: Tensor, bootstrap: Tensor, *, gamma: float) -> Tensor:
    """G[t] = r[t] + gamma G[t+1]; after a row's last action G is its bootstrap.

    rewards [M]; num_actions [B]; bootstrap [B] is 0 where the row terminated, V at its last token where it was cut.
    Returns G [M].
    Raises: RecordError when shapes disagree, a row is empty or a number is not finite.
    Source: Sutton and Barto 2018, eq. 3.9.
    """
    check_packed(num_actions, actions={"rewards": rewards}, rows={"bootstrap": bootstrap})
    rewards, bootstrap = promote(rewards, bootstrap)
    increment = rewards.index_add(0, row_ends(num_actions), gamma * bootstrap)
    decay = row_decay(gamma, num_actions, like=increment)
    return reverse_scan(increment, decay, max_length=int(num_actions.max()))


def n_step_returns(
    rewards: Tensor, values: Tensor, num_actions: Tensor, bootstrap: Tensor, *, gamma: float, n: int
) -> Tensor:
    """G[t] = r[t] + gamma r[t+1] + ... + gamma^(n-1) r[t+n-1] + gamma^n V[t+n], cut short by the row's bootstrap.

    rewards, values [M]; num_actions [B]; bootstrap [B] stands in for V after the row's last action: 0 where the row
    terminated. n >= 1 actions; n = 1 is the one-step target, n >= the longest row the discounted return.
    Returns G [M]; the n-step advantage is G - values.
    Raises: RecordError when shapes disagree, a row is empty, a number is not finite or n < 1.
    Source: Sutton and Barto 2018, eq. 7.1; Mnih et al. 2016, arXiv:1602.01783, algorithm S3.
    """
    if n < 1:
        raise RecordError(f"n-step returns were asked for with n = {n}; give n >= 1")
    check_packed(num_actions, actions={"rewards": rewards, "values": values}, rows={"bootstrap": bootstrap})
    rewards, values, bootstrap = promote(rewards, values, bootstrap)
    ends = row_ends(num_actions)
    increment = rewards.index_add(0, ends, gamma * bootstrap)
    inside = windowed_scan(increment, row_decay(gamma, num_actions, like=increment), window=n)
    target = torch.arange(values.shape[0], device=values.device) + n
    within = target <= ends.repeat_interleave(num_actions)
    beyond = values[target.clamp(max=values.shape[0] - 1)]
    return torch.where(within, inside + gamma**n * beyond, inside)


def lambda_returns(
    rewards: Tensor, values: Tensor, num_actions: Tensor, bootstrap: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """G[t] = r[t] + gamma ((1 - lam) V[t+1] + lam G[t+1]) = GAE advantages + values.

    Shapes, bootstrap and errors as in `gae`. lam = 0 is the one-step target, lam = 1 the discounted return.
    Source: Sutton and Barto 2018, eq. 12.2.
    """
    return gae(rewards, values, num_actions, bootstrap, gamma=gamma, lam=lam) + values


def vtrace(
    rewards: Tensor,
    values: Tensor,
    log_ratios: Tensor,
    num_actions: Tensor,
    bootstrap: Tensor,
    *,
    gamma: float,
    rho_bar: float,
    c_bar: float,
) -> tuple[Tensor, Tensor]:
    """v[t] = V[t] + rho[t] d[t] + gamma c[t] (v[t+1] - V[t+1]) and rho[t] (r[t] + gamma v[t+1] - V[t]).

    d[t] = r[t] + gamma V[t+1] - V[t]; rho = min(rho_bar, exp(log_ratios)), c = min(c_bar, exp(log_ratios)).
    rewards, values [M]; log_ratios [M] = log-probability of the action under the policy to improve minus that under
    the policy that sampled, in nats; num_actions, bootstrap [B] as in `gae`. On-policy with both bars >= 1, v are the
    discounted returns. Returns value targets [M] and policy advantages [M], importance weight included.
    Raises: RecordError as `gae` does.
    Source: Espeholt et al. 2018, arXiv:1802.01561, eq. 1 and section 4.2.
    """
    per_action = {"rewards": rewards, "values": values, "log_ratios": log_ratios}
    check_packed(num_actions, actions=per_action, rows={"bootstrap": bootstrap})
    rewards, values, log_ratios, bootstrap = promote(rewards, values, log_ratios, bootstrap)
    ratios = log_ratios.exp()
    rho, c = ratios.clamp(max=rho_bar), ratios.clamp(max=c_bar)
    delta = rho * (rewards + gamma * next_values(values, num_actions, bootstrap) - values)
    decay = row_decay(gamma, num_actions, like=values) * c
    targets = values + reverse_scan(delta, decay, max_length=int(num_actions.max()))
    advantages = rho * (rewards + gamma * next_values(targets, num_actions, bootstrap) - values)
    return targets, advantages
