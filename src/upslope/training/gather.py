"""Prompts -> rollouts -> rewards: the experience of one step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from upslope.records import Prompt, Rollout
from upslope.rewards import overlong_penalty
from upslope.stopwatch import span
from upslope.training.seeds import data_order, generator
from upslope.training.session import Session

EQUAL = "equal scores"


class Scoring(Protocol):
    """What gives rollouts their rewards, or a failure: the task's Scorer, or a discriminator."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The same rollouts in the same order, each with rewards and metrics, or with a failure."""
        ...


@dataclass(frozen=True, slots=True)
class Experience:
    """Scored rollouts of one step; what was dropped, by reason; where in the data the next step starts.

    prompt_tokens counts the distinct prompts' tokens, sampled_tokens all actions, of dropped rows as well. equal_groups
    is the share of groups whose scores are all equal, dropped ones included, among those of two scored rows and more;
    None where there are none of these.
    """

    rollouts: tuple[Rollout, ...]
    dropped: Counter[str]
    position: int
    rollout_s: float
    reward_s: float
    prompt_tokens: int
    sampled_tokens: int
    equal_groups: float | None

    @property
    def failed(self) -> bool:
        """True when samples were dropped for any reason but equal scores, which only say that all is learned."""
        return any(reason != EQUAL for reason in self.dropped)


def gather(session: Session, *, step: int, scorer: Scoring | None = None) -> Experience:
    """Sample and score training.prompts_per_step groups, by the task's rewards unless another scorer is given.

    Samples whose reward failed are dropped and counted. With dynamic sampling, groups whose scores are all equal are
    dropped and replaced from further prompts, up to max_resamples times.
    """
    settings, training = session.recipe.algorithm, session.recipe.training
    scorer = scorer or session.scorer
    assert scorer is not None
    kept: list[Rollout] = []
    dropped: Counter[str] = Counter()
    equal: list[bool] = []
    position, groups = session.state.position, 0
    rollout_s = reward_s = 0.0
    prompt_tokens = sampled_tokens = 0
    for attempt in range(1 + settings.max_resamples * settings.dynamic_sampling):
        wanted = training.prompts_per_step - groups
        size = len(session.task.prompts)
        indices = data_order(training.seed, position=position, count=wanted, size=size)
        position += wanted
        started = time.perf_counter()
        rollouts = _rollouts(
            session, [session.task.prompts[i] for i in indices], seed=session.seed("rollout", step, attempt)
        )
        sampled = time.perf_counter()
        with span("reward"):
            scored = _noisy(session, scorer.score(rollouts), step, attempt)
        rollout_s, reward_s = rollout_s + sampled - started, reward_s + time.perf_counter() - sampled
        prompt_tokens += sum(map(len, {rollout.prompt.tokens for rollout in rollouts}))
        sampled_tokens += sum(len(rollout.actions) for rollout in rollouts)
        dropped += Counter(rollout.failure for rollout in scored if rollout.failure)
        for members in _by_group(scored):
            same = len({rollout.score for rollout in members}) == 1
            equal += [same] * (len(members) > 1)
            if settings.dynamic_sampling and same:
                dropped[EQUAL] += len(members)
                continue
            kept += [_charged(session, rollout).replace(group=groups) for rollout in members]
            groups += 1
        if groups == training.prompts_per_step:
            break
    share = sum(equal) / len(equal) if equal else None
    return Experience(tuple(kept), dropped, position, rollout_s, reward_s, prompt_tokens, sampled_tokens, share)


def _rollouts(session: Session, prompts: Sequence[Prompt], *, seed: int) -> list[Rollout]:
    """Sampled groups; or, for the expected gradient, every answer of each prompt."""
    engine, encoded = session.engine, session.encode(prompts)
    if session.recipe.algorithm.expected:
        return engine.every_answer(encoded, sampling=session.sampling)
    group_size = session.recipe.algorithm.group_size
    return engine.sample(encoded, group_size=group_size, sampling=session.sampling, seed=seed)


def _noisy(session: Session, rollouts: list[Rollout], *draw: int) -> list[Rollout]:
    """The scored rollouts with Gaussian noise of reward.noise_std on each score, paid at the last action."""
    recipe = session.recipe
    if not recipe.reward.noise_std:
        return rollouts
    random = generator(recipe.training.seed, "reward noise", *draw)
    noise = (recipe.reward.noise_std * torch.randn(len(rollouts), generator=random, dtype=torch.float64)).tolist()
    return [
        rollout
        if rollout.failure
        else rollout.replace(
            rewards=(*rollout.rewards[:-1], rollout.rewards[-1] + extra),
            metrics={**rollout.metrics, "reward_noise": extra},
        )
        for rollout, extra in zip(rollouts, noise, strict=True)
    ]


def _charged(session: Session, rollout: Rollout) -> Rollout:
    """The rollout with DAPO's soft penalty for length, where the recipe asks for it.

    It is charged after dynamic sampling has compared scores: lengths must not make a group of all-wrong answers differ.
    """
    recipe = session.recipe
    if recipe.algorithm.overlong != "penalty":
        return rollout
    penalty = overlong_penalty(recipe.sampling.max_new_tokens, recipe.overlong_buffer)
    charge = float(penalty(completion="", num_tokens=len(rollout.actions)))
    rewards = (*rollout.rewards[:-1], rollout.rewards[-1] + charge)
    return rollout.replace(rewards=rewards, metrics={**rollout.metrics, "overlong_penalty": charge})


def _by_group(rollouts: list[Rollout]) -> list[list[Rollout]]:
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        if not rollout.failure:
            groups.setdefault(rollout.group, []).append(rollout)
    return list(groups.values())
