"""Direct advantage estimation: A(s, a) and V(s) on frozen features, by one ridge regression in closed form.

Features of a state are a vector h [H]; of an action e [E], less its mean under the policy, so that any linear function
of them is an advantage of that policy: sum over a of pi(a|s) A(s, a) = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import RecordError
from upslope.estimators.scan import check_packed, row_ends

_FOLDS = 4


@dataclass(frozen=True, slots=True)
class DirectHead:
    """A(s, a) = h' W e and V(s) = mean + h' w, with W [H, E] and w [H]."""

    advantage: Tensor
    value: Tensor
    mean: float

    def advantages(self, states: Tensor, actions: Tensor) -> Tensor:
        """A [M] of states h [M, H] and centred actions e [M, E]."""
        return ((states @ self.advantage) * actions).sum(1)

    def values(self, states: Tensor) -> Tensor:
        """V [M] of states h [M, H]."""
        return self.mean + states @ self.value


@dataclass(frozen=True, slots=True)
class Ridge:
    """What the weights of V and of A cost, w'w and |W|^2: in units of observations. advantage = inf leaves A out."""

    value: float
    advantage: float


def centred_vectors(vectors: Tensor, logprobs: Tensor, actions: Tensor) -> Tensor:
    """e(a) - sum over b of pi(b|s) e(b), [m, E]: its mean under the policy is 0 at every state.

    vectors e [K, E]; logprobs [m, K] of the distribution sampled from; actions [m].
    """
    return vectors[actions] - logprobs.exp().to(vectors.dtype) @ vectors


def direct_advantage(
    states: Tensor,
    actions: Tensor,
    returns: Tensor,
    num_actions: Tensor,
    *,
    gamma: float,
    ridge: Ridge,
    weights: Tensor | None = None,
) -> DirectHead:
    """argmin over W, w of sum_t weights[t] (G[t] - mean - h[t]'w - sum_{u >= t} gamma^(u-t) h[u]'W e[u])^2
    + ridge.value |w|^2 + ridge.advantage |W|^2, sums over u within a row.

    states h [M, H]; actions e [M, E] as `centred_vectors` gives them; returns G [M], discounted by gamma; num_actions
    [B]; weights [M] > 0, 1 where not given; mean is G's. Where the outcome of an action is certain, as in text, the
    true advantages and values leave no residual at all: G = V + the discounted sum of A, on every row. Without A
    (ridge.advantage = inf) it is the regression of returns that a value head learns. Solved in the M dual coefficients,
    M^3 / 3 operations.
    Raises: RecordError when shapes disagree or a return is not finite.
    Source: Pan et al. 2022, arXiv:2109.06093: direct advantage estimation with a value function, n being here the rest
    of the row, and centred by construction.
    """
    regression = _Regression(states, actions, returns, num_actions, gamma, weights)
    return regression.head(regression.coefficients(ridge), ridge)


def chosen_ridge(
    states: Tensor,
    actions: Tensor,
    returns: Tensor,
    num_actions: Tensor,
    group: Tensor,
    *,
    gamma: float,
    ridges: Iterable[Ridge],
) -> Ridge:
    """The ridge with the least squared residual on groups [B] that were left out, four folds of them.

    The others as in `direct_advantage`. Rows of a prompt share a group: else its own values would be known.
    """
    regression = _Regression(states, actions, returns, num_actions, gamma, None)
    fold = (torch.unique(group, return_inverse=True)[1] % _FOLDS).repeat_interleave(num_actions)
    return min(ridges, key=lambda ridge: regression.left_out_error(ridge, fold))


def mean_head(heads: Sequence[DirectHead]) -> DirectHead:
    """The ensemble's head: as heads are linear, the mean of their weights gives the mean of their estimates."""
    return DirectHead(
        torch.stack([head.advantage for head in heads]).mean(0),
        torch.stack([head.value for head in heads]).mean(0),
        math.fsum(head.mean for head in heads) / len(heads),
    )


class _Regression:
    """Gram matrices [M, M] of both parts of the prediction, and what is regressed on them."""

    def __init__(
        self,
        states: Tensor,
        actions: Tensor,
        returns: Tensor,
        num_actions: Tensor,
        gamma: float,
        weights: Tensor | None,
    ) -> None:
        check_packed(num_actions, actions={"returns": returns}, rows={})
        if not len(states) == len(actions) == len(returns):
            raise RecordError(f"there are {len(returns)} returns, {len(states)} states and {len(actions)} actions")
        self._weights = torch.ones_like(returns) if weights is None else weights
        self._mean = float((self._weights * returns).sum() / self._weights.sum())
        self._states, self._actions, self._returns = states, actions, returns - self._mean
        self._gamma, self._ends = gamma, set(row_ends(num_actions).tolist())
        inner = states @ states.T
        self._value = inner
        self._advantage = self._summed(self._summed(inner * (actions @ actions.T)).T)

    def coefficients(self, ridge: Ridge) -> Tensor:
        """The dual coefficients [M]."""
        return _solve(self._gram(ridge), self._weights, self._returns)

    def left_out_error(self, ridge: Ridge, fold: Tensor) -> float:
        """Sum of weighted squared residuals of every fold under the fit to the others."""
        gram, total = self._gram(ridge), 0.0
        for held in fold.unique():
            out, inside = (fold == held).nonzero()[:, 0], (fold != held).nonzero()[:, 0]
            found = _solve(gram[inside][:, inside], self._weights[inside], self._returns[inside])
            residual = self._returns[out] - gram[out][:, inside] @ found
            total += float((self._weights[out] * residual.square()).sum())
        return total

    def head(self, coefficients: Tensor, ridge: Ridge) -> DirectHead:
        """The weights that the dual coefficients stand for."""
        passed = self._passed_on(coefficients)
        advantage = self._states.T @ (passed[:, None] * self._actions) / ridge.advantage
        return DirectHead(advantage, self._states.T @ coefficients / ridge.value, self._mean)

    def _gram(self, ridge: Ridge) -> Tensor:
        return self._value / ridge.value + self._advantage / ridge.advantage

    def _summed(self, rows: Tensor) -> Tensor:
        """y[t] = x[t] + gamma y[t+1] over the first dimension, within a row."""
        summed = rows.clone()
        for t in range(len(rows) - 2, -1, -1):
            if t not in self._ends:
                summed[t] += self._gamma * summed[t + 1]
        return summed

    def _passed_on(self, x: Tensor) -> Tensor:
        """The transpose of _summed: y[u] = x[u] + gamma y[u-1], within a row."""
        passed = x.clone()
        for u in range(1, len(x)):
            if u - 1 not in self._ends:
                passed[u] += self._gamma * passed[u - 1]
        return passed


def _solve(gram: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    """(gram + diag(1 / weights))^-1 targets."""
    factor = torch.linalg.cholesky(gram + torch.diag(1.0 / weights))
    return torch.cholesky_solve(targets[:, None], factor)[:, 0]
