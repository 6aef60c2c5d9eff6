"""True advantages of sampled decisions: by branches, or exactly where every answer can be listed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.advantage_error import Truth
from upslope.evaluation.arms import Arm
from upslope.policies.sampling import Sampling
from upslope.records import Prompt, Rollout
from upslope.rewards import Scorer

_BRANCH_SEED = 1 << 40  # added to a place's seed: branches share no random number with the rows they leave


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions drawn from all that some sampled rows hold, with their true advantages as far as branches tell.

    rollouts: the rows, scored. row, step [n]: decision i is action step[i] of rollouts[row[i]]; truth [n]. left_out
    counts rows and decisions that could not be scored, by reason. Tokens are actions that were sampled: for the rows,
    and for the branches, whose seconds count scoring as well.
    """

    rollouts: tuple[Rollout, ...]
    row: np.ndarray
    step: np.ndarray
    truth: Truth
    left_out: Mapping[str, int]
    row_tokens: int
    branch_tokens: int
    branch_s: float

    @property
    def cut(self) -> float:
        """The share of rows that were cut at max_new_tokens."""
        return float(np.mean([not rollout.terminated for rollout in self.rollouts]))


def decide(
    arm: Arm,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    clusters: Mapping[int, int],
    *,
    rows: int,
    branches: int,
    sampling: Sampling,
    gamma: float,
    seed: int,
) -> Decisions:
    """So many rows of every prompt, as many decisions, and their advantages by `branches` ends after and before each.

    Where a row is one label, the advantage is exact, from the rewards of all labels. clusters: prompt id -> cluster.
    Raises: DataError where no decision can be scored; ModelError.
    """
    before = arm.tokens
    sampled = scorer.score(arm.answer(prompts, samples=rows, sampling=sampling, seed=seed))
    left_out = Counter(rollout.failure for rollout in sampled if rollout.failure)
    kept = tuple(rollout for rollout in sampled if not rollout.failure)
    row_tokens = arm.tokens - before
    if not kept:
        raise DataError(f"none of {len(sampled)} rows could be scored: {next(iter(left_out), 'there are none')}")
    lengths = np.array([len(rollout.actions) for rollout in kept])
    row, step = drawn(lengths, len(kept), np.random.default_rng(seed))
    chosen = [kept[index] for index in row]
    named = np.array([clusters[rollout.prompt.id] for rollout in chosen])
    tokens, started = arm.tokens, time.perf_counter()
    listed = all(rollout.stop_reason == "action" and len(rollout.actions) == 1 for rollout in kept)
    if listed:
        found = _listed(arm, scorer, chosen, sampling)
        complete = np.isfinite(found)
        truth = Truth.exact(found[complete], named[complete])
    else:
        after, state = _returns(
            arm, scorer, chosen, step, gamma, branches=branches, sampling=sampling, seed=seed + _BRANCH_SEED
        )
        complete = np.isfinite(after).all(1) & np.isfinite(state).all(1)
        truth = Truth.of_branches(after[complete], state[complete], named[complete])
    if not complete.any():
        raise DataError(f"of none of {len(chosen)} decisions could every branch be scored")
    if missing := int((~complete).sum()):
        left_out["a branch that could not be scored"] = missing
    branched = 0 if listed else arm.tokens - tokens  # a list of answers samples none of them
    spent = time.perf_counter() - started
    return Decisions(kept, row[complete], step[complete], truth, dict(left_out), row_tokens, branched, spent)


def drawn(lengths: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Row and step [count] of that many of all the actions of rows of such lengths, each action as likely as another.

    Not so many from each row: an action that makes its row short would then be drawn more often, and be seen together
    with a short future. Advantages drawn so do not average to 0, and an unbiased return looks biased.
    """
    index = np.sort(generator.choice(lengths.sum(), size=count, replace=False))
    ends = lengths.cumsum()
    row = np.searchsorted(ends, index, side="right")
    return row, index - (ends - lengths)[row]


def discounted(rewards: Sequence[float], start: int, gamma: float) -> float:
    """sum over u >= start of gamma^(u - start) r[u]."""
    return float(sum(gamma**later * reward for later, reward in enumerate(rewards[start:])))


def _returns(
    arm: Arm,
    scorer: Scorer,
    rollouts: Sequence[Rollout],
    step: np.ndarray,
    gamma: float,
    *,
    branches: int,
    sampling: Sampling,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns from the decision on, [n, k] each, of ends after the action and of ends after the state; NaN where one
    could not be scored."""
    kept = [*(step + 1).tolist(), *step.tolist()]
    ends = arm.branch([*rollouts, *rollouts], kept, num_branches=branches, sampling=sampling, seed=seed)
    starts = np.repeat([*step, *step], branches)
    found = np.array(
        [
            np.nan if end.failure else discounted(end.rewards, start, gamma)
            for end, start in zip(scorer.score(ends), starts.tolist(), strict=True)
        ]
    )
    after, before = found.reshape(2, len(rollouts), branches)
    return after, before


def _listed(arm: Arm, scorer: Scorer, rollouts: Sequence[Rollout], sampling: Sampling) -> np.ndarray:
    """r(a) - sum over b of pi(b) r(b) of one-label rows [n]; NaN where a label could not be scored."""
    prompts = list({rollout.prompt.id: rollout.prompt for rollout in rollouts}.values())
    answers = scorer.score(arm.every_answer(prompts, sampling=sampling))
    rewards: dict[tuple[int, int], float] = {}
    values = {prompt.id: 0.0 for prompt in prompts}
    for answer in answers:
        reward = np.nan if answer.failure else answer.score
        rewards[answer.prompt.id, answer.actions[0]] = reward
        values[answer.prompt.id] += float(np.exp(answer.engine_logprobs[0])) * reward
    return np.array([rewards[r.prompt.id, r.actions[0]] - values[r.prompt.id] for r in rollouts])
