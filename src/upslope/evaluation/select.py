"""The best of several models on a task: a race that drops who is shown to be worse, and an honest figure at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.errors import DataError, RecipeError
from upslope.evaluation.answers import Answers
from upslope.evaluation.arms import Model, clusters_of, shuffled
from upslope.evaluation.clustered import clustered_mean
from upslope.evaluation.compare import batches, held_out, load_arms, sampling_for
from upslope.evaluation.intervals import Interval
from upslope.evaluation.paired import Difference, difference
from upslope.evaluation.sequences import FIRST_LOOK
from upslope.rewards import Scorer
from upslope.tasks import Task


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model of the race: its mean on the prompts it answered, and after how many it was out (None: it was not)."""

    name: str
    mean: float
    num_prompts: int
    out_after: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """winner: the best of those left. tied: all that were left, the winner first. estimate: of the winner, on prompts
    that had no part in the choice; of the race's own means the highest is too high."""

    winner: str
    tied: tuple[str, ...]
    estimate: Interval
    entrants: tuple[Entrant, ...]
    num_fresh_prompts: int
    num_samples: int
    num_tokens: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self)


def select(
    models: Sequence[Model],
    task: Task | str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    metric: str | None = None,
    num_prompts: int | None = None,
    samples: int = 1,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    kind: str = "causal",
    cluster: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    look_every: int = 50,
    fresh: float = 0.25,
    seed: int = 0,
) -> Selection:
    """The model with the highest mean reward, by successive elimination, re-estimated on untouched prompts.

    All models answer the same prompts, look_every at a time; whoever is shown to be worse than the leader answers no
    more. Each of the K - 1 comparisons that could drop the best model has its share 1 / (K - 1) of the error, so that
    the best one stays in with probability `confidence`, however often one looked. The race ends when one is left, when
    all that are left are tied with the leader to within the margin, or with the prompts. A share `fresh` of the prompts
    is kept for the winner's own estimate. Other settings are those of `compare`.

    Raises: RecipeError for fewer than two models or settings out of range; DataError for too few prompts; ModelError;
    RewardError.
    Source: Even-Dar, Mannor & Mansour 2006, "Action elimination and stopping conditions for the multi-armed bandit",
    with confidence sequences for its bounds.
    """
    if len(models) < 2 or not 0.0 < fresh < 1.0:
        raise RecipeError(f"a choice needs two models at least ({len(models)}), and fresh = {fresh} a share in (0, 1)")
    arms, task, settings = load_arms(models, task, options or {}, kind=kind, seed=seed)
    prompts = held_out(task, num_prompts)
    clusters = clusters_of(prompts, cluster)
    groups = shuffled(prompts, clusters, seed=seed)
    kept = max(2, round(fresh * len(groups)))
    if len(groups) - kept < FIRST_LOOK:
        raise DataError(f"{len(groups)} prompts are too few: {FIRST_LOOK} for a first look, and {kept} kept untouched")
    sampling = sampling_for(settings, temperature=temperature, max_new_tokens=max_new_tokens)
    how: dict[str, Any] = {"samples": samples, "sampling": sampling, "clusters": clusters}
    how["metric"] = metric or task.metric_name
    with Scorer(task.terms, timeout_s=settings.reward.timeout_s, isolation=settings.reward.isolation) as scorer:
        race = Race(Answers(arms, scorer, **how), confidence=confidence, margin=margin, tuned_for=len(groups) - kept)
        for batch in batches(groups[:-kept], look_every, first=FIRST_LOOK):
            race.look(batch)
            if race.over:
                break
        final = Answers([arms[race.leader]], scorer, **how)
        final.answer([prompt for group in groups[-kept:] for prompt in group])
    own = final.pairs(0, 0)
    mean = clustered_mean(own.a.mean(1), own.clusters)
    low, high = mean.bounds(confidence)
    order = sorted(race.left, key=lambda index: -race.mean(index))
    return Selection(
        winner=arms[race.leader].name,
        tied=tuple(arms[index].name for index in order),
        estimate=Interval(float(mean.estimate), float(low), float(high)),
        entrants=race.entrants(),
        num_fresh_prompts=len(final.prompts),
        num_samples=samples * (len(final.prompts) + sum(len(rewards) for rewards in race.answers.rewards)),
        num_tokens=sum(arm.tokens for arm in arms),
        notes=(*race.answers.notes(), *final.notes()),
    )


class Race:
    """Models that answer in step until they are shown to be worse than the leader; `left` are the ones in it."""

    def __init__(self, answers: Answers, *, confidence: float, margin: float | None, tuned_for: float) -> None:
        self.answers, self._margin, self._tuned_for = answers, margin, tuned_for
        self.left = list(range(len(answers.arms)))
        self._confidence = 1.0 - (1.0 - confidence) / (len(self.left) - 1)
        self._out: dict[int, int] = {}
        self._tied = False

    @property
    def leader(self) -> int:
        """The model with the highest mean of those left."""
        return max(self.left, key=self.mean)

    @property
    def over(self) -> bool:
        """Whether one is left, or all are tied."""
        return len(self.left) == 1 or self._tied

    def mean(self, index: int) -> float:
        """A model's mean reward so far."""
        return float(np.mean(self.answers.rewards[index]))

    def look(self, prompts: Sequence[Any]) -> None:
        """Let those left answer these prompts too, and drop whoever is worse than the leader."""
        self.answers.answer(prompts, self.left)
        if self.answers.num_clusters < FIRST_LOOK:
            return
        leader = self.leader
        found = {index: self._beside(leader, index) for index in self.left if index != leader}
        for index, beside in found.items():
            if beside.verdict == "worse":
                self._out[index] = len(self.answers.prompts)
        self.left = [index for index in self.left if index not in self._out]
        self._tied = all(found[index].verdict == "tied" for index in self.left if index != leader)

    def entrants(self) -> tuple[Entrant, ...]:
        """Every model with how it fared."""
        rewards = self.answers.rewards
        return tuple(
            Entrant(arm.name, self.mean(index), len(rewards[index]), self._out.get(index))
            for index, arm in enumerate(self.answers.arms)
        )

    def _beside(self, leader: int, index: int) -> Difference:
        return difference(
            self.answers.pairs(leader, index),
            method="asymptotic",
            confidence=self._confidence,
            margin=self._margin,
            tuned_for=self._tuned_for,
        )
