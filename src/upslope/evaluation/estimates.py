"""The estimators that are judged: what each says of every action of some rows, and what saying it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import Tensor

from upslope import estimators
from upslope.estimators.direct import (
    DirectHead,
    Ridge,
    centred_vectors,
    chosen_ridge,
    direct_advantage,
    mean_head,
)
from upslope.policies.policy import Policy, ReadablePolicy
from upslope.policies.sampling import Sampling, warp
from upslope.records import Batch, Rollout, collate

LAMS = (0.0, 0.5, 0.8, 0.95, 1.0)
N_STEP = 4
NUM_HEADS = 5
MOST_ACTIONS = 2_000
"""That heads are fitted on: the time grows with their cube."""

CRITIC, VALUE, VALUES = "critic", "fitted V", f"{NUM_HEADS} fitted V"
ADVANTAGE, ADVANTAGES = "advantage head", f"{NUM_HEADS} advantage heads"
ROWS, MIXED = "others' mean", "mean of several"
OTHERS = "return - others' mean"

_MIXED_LAM = 0.95
_PIECE_TOKENS = 4096
_CENTRED = 256  # actions whose distributions over the whole vocabulary are held at a time
_RIDGES = (0.1, 1.0, 10.0, 100.0)
_NONE = float("inf")  # what the advantage's weights cost where there is no advantage part

T = TypeVar("T")


class Settings(TypedDict):
    """What estimators that rest on values take: lam of GAE and n of n-step."""

    gamma: float
    lams: Sequence[float]
    n_step: int


Data = tuple[Tensor, Tensor, Tensor, Tensor]  # features [M, H], actions [M, E], returns [M], num_actions [B]


@dataclass(frozen=True, slots=True)
class Readings:
    """What estimators see of scored rows, in float64 on the CPU: states [M, H] that decide, actions [M, E] centred
    under the policy that sampled, and of the critic, where there is one, values [M] and bootstrap [B]; seconds by
    part."""

    batch: Batch
    states: Tensor
    actions: Tensor
    values: Tensor | None
    bootstrap: Tensor | None
    seconds: Mapping[str, float]

    @property
    def rewards(self) -> Tensor:
        """What each action earned, [M]."""
        assert self.batch.rewards is not None
        return self.batch.rewards.double()

    @property
    def nothing(self) -> Tensor:
        """0 for each row, [B]: what is earned after its last action."""
        return torch.zeros(self.batch.num_rows, dtype=torch.float64)

    def returns(self, gamma: float) -> Tensor:
        """G [M], discounted."""
        return estimators.discounted_returns(self.rewards, self.batch.num_actions, self.nothing, gamma=gamma)


@dataclass(frozen=True, slots=True)
class Heads:
    """What was fitted on frozen states, by name: V alone, A with V, and the mean of several of each.

    mean, scale [H] of the states fitted on; ridges chosen; seconds that each took, reading the states included.
    """

    mean: Tensor
    scale: Tensor
    heads: Mapping[str, DirectHead]
    ridges: tuple[Ridge, Ridge]
    seconds: Mapping[str, float]

    def features(self, states: Tensor) -> Tensor:
        """[M, H + 1] of states [M, H]; see `features`."""
        return features(states, self.mean, self.scale)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one estimator says of every action, advantages [M].

    family: what it rests on; head: the name of what has to be fitted for it, if anything; lam where it is GAE's.
    seconds: of reading what it needs off the model, which it may share with others, and of arithmetic.
    """

    name: str
    family: str
    head: str | None
    lam: float | None
    advantages: Tensor
    seconds: float


def gae_name(lam: float) -> str:
    """What GAE(lam) is called: at its ends it is something simpler."""
    return {0.0: "TD residual", 1.0: "Monte Carlo - V"}.get(lam, f"GAE({lam:g})")


def features(states: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """[M, H + 1]: states standardised in every dimension, of mean square length 1, and a constant."""
    scaled = (states - mean) / scale / states.shape[1] ** 0.5
    return torch.cat([scaled, scaled.new_ones(len(scaled), 1)], 1)


@torch.no_grad()
def read(
    policy: ReadablePolicy, sampler: Policy, rollouts: Sequence[Rollout], *, sampling: Sampling, critic: bool
) -> Readings:
    """Read rows off the policy whose estimators are judged; sampler wrote them, under `sampling`."""
    batch = collate(rollouts)[0]
    own = batch.to(policy.device)
    pieces = policy.micro_batches(own, max_tokens=_PIECE_TOKENS)
    states, states_s = _timed(lambda: _by_action(own, pieces, policy.states))
    vectors = _normalised(policy.action_vectors().float())
    actions, actions_s = _timed(lambda: _centred(sampler, batch.to(sampler.device), vectors, sampling))
    seconds = {"states": states_s, "actions": actions_s}
    values = bootstrap = None
    if critic:
        found, seconds["values"] = _timed(lambda: _values(policy, own, pieces, sampling))
        values, bootstrap = found
    return Readings(batch, states.double().cpu(), actions.double().cpu(), values, bootstrap, seconds)


def fit(readings: Readings, *, gamma: float, seed: int) -> Heads:
    """Heads on these rows' returns: ridges chosen on prompts left out, ensembles on prompts drawn with replacement."""
    mean, scale = readings.states.mean(0), readings.states.std(0).clamp_min(1e-6)
    group, count = readings.batch.group, readings.batch.num_actions
    data = (features(readings.states, mean, scale), readings.actions, readings.returns(gamma), count)

    def chosen(ridges: Sequence[Ridge]) -> tuple[Ridge, float]:
        return _timed(lambda: chosen_ridge(*data, group, gamma=gamma, ridges=ridges))

    value, value_s = chosen([Ridge(ridge, _NONE) for ridge in _RIDGES])
    advantage, advantage_s = chosen([Ridge(value.value, ridge) for ridge in _RIDGES])
    before = {VALUE: readings.seconds["states"] + value_s}
    before[ADVANTAGE] = before[VALUE] + readings.seconds["actions"] + advantage_s
    heads, seconds = {}, {}
    for one, several, ridge in ((VALUE, VALUES, value), (ADVANTAGE, ADVANTAGES, advantage)):
        started = time.perf_counter()
        heads[one] = direct_advantage(*data, gamma=gamma, ridge=ridge)
        fitted = time.perf_counter()
        heads[several] = _ensemble(data, group, gamma, ridge, seed)
        seconds[one] = before[one] + fitted - started
        seconds[several] = before[one] + time.perf_counter() - fitted
    return Heads(mean, scale, heads, (value, advantage), seconds)


def estimate(readings: Readings, heads: Heads, *, gamma: float, lams: Sequence[float], n_step: int) -> list[Estimate]:
    """Every estimator's advantages of the rows' actions.

    After a row's last action fitted values are 0, as what is earned there is; the critic has its own value there where
    the row was cut, as in training.
    """
    seen, spent = heads.features(readings.states), readings.seconds
    how: Settings = {"gamma": gamma, "lams": lams, "n_step": n_step}
    found: list[Estimate] = []
    if readings.values is not None and readings.bootstrap is not None:
        found += _by_values(readings, CRITIC, readings.values, readings.bootstrap, spent["values"], **how)
    for name in (VALUE, VALUES):
        values = heads.heads[name].values(seen)
        found += _by_values(readings, name, values, readings.nothing, spent["states"], **how)
    others, others_s = _timed(lambda: _less_the_others(readings, gamma))
    found.append(Estimate(OTHERS, ROWS, None, None, others, others_s))
    for name in (ADVANTAGE, ADVANTAGES):
        advantages = heads.heads[name].advantages(seen, readings.actions)
        found.append(Estimate(name, name, name, None, advantages, spent["states"] + spent["actions"]))
    gae = next(one for one in found if one.lam == _MIXED_LAM)
    parts = (gae, found[-3], found[-1])
    mixed = torch.stack([part.advantages for part in parts]).mean(0)
    name = f"mean of GAE({_MIXED_LAM:g}), others' mean, heads"
    found.append(Estimate(name, MIXED, ADVANTAGES, None, mixed, sum(part.seconds for part in parts)))
    return found


def _by_values(
    readings: Readings,
    family: str,
    values: Tensor,
    bootstrap: Tensor,
    seconds: float,
    *,
    gamma: float,
    lams: Sequence[float],
    n_step: int,
) -> Iterator[Estimate]:
    """What is made of values: GAE at every lam, and n-step."""
    rewards, count = readings.rewards, readings.batch.num_actions
    head = None if family == CRITIC else family
    given = (rewards, values, count, bootstrap)
    for lam in lams:
        advantages, spent = _timed(lambda lam=lam: estimators.gae(*given, gamma=gamma, lam=lam))  # type: ignore[misc]
        yield Estimate(f"{gae_name(lam)}, {family}", family, head, lam, advantages, seconds + spent)
    returns, spent = _timed(lambda: estimators.n_step_returns(*given, gamma=gamma, n=n_step))
    yield Estimate(f"{n_step}-step, {family}", family, head, None, returns - values, seconds + spent)


def _less_the_others(readings: Readings, gamma: float) -> Tensor:
    """G[t] - the mean score of the prompt's other rows, [M], as training with leave_one_out has it."""
    count = readings.batch.num_actions
    others = estimators.leave_one_out(estimators.row_sum(readings.rewards, count), readings.batch.group)
    return readings.returns(gamma) - others[estimators.row_ids(count)]


def _ensemble(data: Data, group: Tensor, gamma: float, ridge: Ridge, seed: int) -> DirectHead:
    """The mean of heads fitted on prompts drawn with replacement: one drawn twice counts twice."""
    states, actions, returns, count = data
    names, index = torch.unique(group, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for _ in range(NUM_HEADS):
        drawn = torch.randint(len(names), (len(names),), generator=generator)
        times = torch.bincount(drawn, minlength=len(names))[index]
        often = times.repeat_interleave(count)
        inside = often > 0
        part = (states[inside], actions[inside], returns[inside], count[times > 0])
        heads.append(direct_advantage(*part, gamma=gamma, ridge=ridge, weights=often[inside].double()))
    return mean_head(heads)


def _by_action(batch: Batch, pieces: Sequence[Tensor], compute: Callable[[Batch], Tensor]) -> Tensor:
    """[M, ...] in the batch's order, of pieces of its rows."""
    found: list[Tensor] = [torch.empty(0)] * batch.num_rows
    for rows in pieces:
        piece = batch.select(rows)
        for row, values in zip(rows.tolist(), piece.split_rows(compute(piece)), strict=True):
            found[row] = values
    return torch.cat(found)


def _values(policy: Policy, batch: Batch, pieces: Sequence[Tensor], sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The critic's values [M] and bootstrap [B], in float64."""
    scores = [policy.score(batch.select(rows), sampling=sampling, values=True) for rows in pieces]
    values = iter([found.values for found in scores if found.values is not None])
    bootstrap = torch.zeros(batch.num_rows, dtype=torch.float64)
    for rows, found in zip(pieces, scores, strict=True):
        assert found.bootstrap is not None
        bootstrap[rows] = found.bootstrap.double().cpu()
    return _by_action(batch, pieces, lambda _: next(values)).double().cpu(), bootstrap


def _centred(sampler: Policy, batch: Batch, vectors: Tensor, sampling: Sampling) -> Tensor:
    """Vectors of the actions [M, E] less their mean under the distribution that they were drawn from."""
    vectors = vectors.to(batch.actions.device)
    found = []
    rows = max(1, _CENTRED // int(batch.num_actions.max()))
    for piece in map(batch.select, torch.arange(batch.num_rows).split(rows)):
        logits = torch.cat([chunk.float() for chunk in sampler.distributions(piece)])
        logprobs = warp(logits, sampling, actions=piece.actions).log_softmax(1)
        found.append(centred_vectors(vectors, logprobs, piece.actions))
    return torch.cat(found)


def _normalised(vectors: Tensor) -> Tensor:
    """Centred, and of mean square length 1."""
    vectors = vectors - vectors.mean(0)
    return vectors / vectors.square().sum(1).mean().sqrt()


def _timed(compute: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = compute()
    return result, time.perf_counter() - started
