"""Generalised advantage estimation over packed actions."""

from __future__ import annotations

from torch import Tensor

from upslope.estimators.scan import check_packed, next_values, promote, reverse_scan, row_decay


def gae(rewards: Tensor, values: Tensor, num_actions: Tensor, bootstrap: Tensor, *, gamma: float, lam: float) -> Tensor:
    """A[t] = d[t] + gamma lam A[t+1], with d[t] = r[t] + gamma V[t+1] - V[t]; restarts at every row.

    rewards, values [M]; num_actions [B]; bootstrap [B] is V at the row's last token: 0 where the row terminated, the
    critic's value where it was cut. The next state of an action is the next action of its row: tool and user tokens
    between two turns are no steps. Returns advantages [M], not whitened; the value targets are advantages + values.
    Raises: RecordError when shapes disagree, a row is empty or a number is not finite.
    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    check_packed(num_actions, actions={"rewards": rewards, "values": values}, rows={"bootstrap": bootstrap})
    rewards, values, bootstrap = promote(rewards, values, bootstrap)
    delta = next_values(values, num_actions, bootstrap).mul_(gamma).add_(rewards).sub_(values)
    decay = row_decay(gamma * lam, num_actions, like=delta)
    return reverse_scan(delta, decay, max_length=int(num_actions.max()))
