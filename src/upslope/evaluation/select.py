"""The best of several models on a task: a race that drops who is shown to be worse, and an honest figure at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from upslope.errors import DataError, RecipeError
from upslope.evaluation.answers import Answers
from upslope.evaluation.clustered import clustered_mean, mostly_alike, with_imagined
from upslope.evaluation.comparison import finite
from upslope.evaluation.ensembles import Candidate
from upslope.evaluation.intervals import Interval
from upslope.evaluation.paired import Difference, difference
from upslope.evaluation.sequences import FIRST_LOOK
from upslope.evaluation.trial import Asked, Trial, batches
from upslope.report.document import Bars, Document, Table
from upslope.tasks import Task


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model of the race: its mean on the prompts it answered, and after how many it was out (None: it was not).

    behind: its mean less the leader's at its last look, with the interval of the race; None of the leader itself.
    """

    name: str
    mean: float
    num_prompts: int
    out_after: int | None
    behind: Interval | None


@dataclass(frozen=True, slots=True)
class Selection:
    """winner: the best of those left. tied: all that were left, the winner first. estimate: of the winner, on prompts
    that had no part in the choice; of the race's own means the highest is too high."""

    winner: str
    tied: tuple[str, ...]
    estimate: Interval
    confidence: float
    task: str
    metric: str
    entrants: tuple[Entrant, ...]
    num_fresh_prompts: int
    num_samples: int
    num_tokens: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        found, others = self.estimate, ", ".join(self.tied[1:])
        said = f"{self.winner} is chosen" + (f", not told apart from {others}" if others else "")
        return (
            f"{said}: {self.metric} {found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}] on "
            f"{self.num_fresh_prompts} untouched prompts"
        )

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file; what is infinite is None."""
        found: dict[str, Any] = finite(dataclasses.asdict(self))
        return found

    def rows(self) -> list[tuple[str, ...]]:
        """The entrants as a table: of means, those of the race, on the prompts that each answered."""
        head = ("model", self.metric, "prompts", "less the leader's", "outcome")
        return [head, *(self._row(entrant) for entrant in self.entrants)]

    def _row(self, entrant: Entrant) -> tuple[str, ...]:
        behind, outcome = "", "chosen" if entrant.name == self.winner else "left"
        if entrant.behind is not None:
            behind = f"{entrant.behind.estimate:+.4f} [{entrant.behind.low:+.4f}, {entrant.behind.high:+.4f}]"
        if entrant.out_after is not None:
            outcome = f"out after {entrant.out_after}"
        return (entrant.name, f"{entrant.mean:.4f}", str(entrant.num_prompts), behind, outcome)

    def document(self) -> Document:
        """To be read: the sentence, the race and what it took."""
        behind = [(e.name, e.behind.estimate, e.behind.low, e.behind.high) for e in self.entrants if e.behind]
        own = [(self.winner, self.estimate.estimate, self.estimate.low, self.estimate.high)]
        took = f"{self.num_samples} samples, {self.num_tokens} tokens"
        blocks: list[Table | Bars] = [
            Bars(f"The winner on untouched prompts, {self.confidence:.0%} interval", own, digits=4),
            Table("The race", self.rows()),
            *([Bars("Mean less the leader's at the last look", behind, digits=4)] if behind else []),
        ]
        return Document(f"The best of {len(self.entrants)} on {self.task}", str(self), blocks, (*self.notes, took))


def select(
    models: Sequence[Candidate],
    task: Task | str | None = None,
    *,
    margin: float | None = None,
    confidence: float = 0.95,
    look_every: int = 50,
    fresh: float = 0.25,
    **asked: Unpack[Asked],
) -> Selection:
    """The model with the highest mean reward, by successive elimination, re-estimated on untouched prompts.

    All models answer the same prompts, look_every at a time; whoever is shown to be worse than the leader answers no
    more. Each of the K - 1 comparisons that could drop the best model has its share 1 / (K - 1) of the error, so that
    the best one stays in with probability `confidence`, however often one looked. The race ends when one is left, when
    all that are left are tied with the leader to within the margin (so that the best one is better than the winner by
    less than it, as surely), or with the prompts. A share `fresh` of the prompts is kept for the winner's own estimate.
    asked: options, metric, num_prompts, samples, max_new_tokens, temperature, kind, cluster and seed, as `trial.Trial`
    has them.

    Raises: RecipeError for fewer than two models or settings out of range; DataError for too few prompts; ModelError;
    RewardError.
    Source: Even-Dar, Mannor & Mansour 2006, "Action elimination and stopping conditions for the multi-armed bandit",
    with confidence sequences for its bounds.
    """
    if len(models) < 2 or not 0.0 < fresh < 1.0 or look_every < 1:
        raise RecipeError(
            f"a choice needs two models at least ({len(models)}), fresh = {fresh} a share in (0, 1), and look_every = "
            f"{look_every} one prompt at least"
        )
    trial = Trial(models, task, **asked)
    kept = max(2, round(fresh * len(trial.groups)))
    groups, fresh_groups = trial.groups[:-kept], trial.groups[-kept:]
    if len(groups) < FIRST_LOOK:
        raise DataError(
            f"{len(trial.groups)} prompts are too few: {FIRST_LOOK} for a first look, and {kept} kept untouched"
        )
    with trial.scorer() as scorer:
        race = Race(trial.answers(scorer), confidence=confidence, margin=margin, tuned_for=len(groups))
        for batch in batches(groups, look_every, first=FIRST_LOOK):
            race.look(batch)
            if race.over:
                break
        final = trial.answers(scorer, [trial.arms[race.leader]])
        final.answer([prompt for group in fresh_groups for prompt in group])
    return _result(race, final, trial, confidence)


def _result(race: Race, final: Answers, trial: Trial, confidence: float) -> Selection:
    order = sorted(race.left, key=lambda index: -race.mean(index))
    shared = [*race.answers.notes(), *race.notes]
    return Selection(
        winner=trial.arms[race.leader].name,
        tied=tuple(trial.arms[index].name for index in order),
        estimate=_own(final, confidence),
        confidence=confidence,
        task=trial.task.name,
        metric=final.metric,
        entrants=race.entrants(),
        num_fresh_prompts=len(final.prompts),
        num_samples=trial.samples * (len(final.prompts) + sum(len(rewards) for rewards in race.answers.rewards)),
        num_tokens=sum(arm.tokens for arm in trial.arms),
        notes=(*trial.notes(), *shared, *(note for note in final.notes() if note not in shared)),
    )


def _own(final: Answers, confidence: float) -> Interval:
    """The winner's mean; where its values are mostly alike (all right, say), the interval allows for two others."""
    pairs = final.pairs(0, 0)
    values, clusters = pairs.a.mean(1), pairs.clusters
    estimate, seen = float(values.mean()), (float(values.min()), float(values.max()))
    share = seen[0] >= 0.0 and seen[1] <= 1.0  # as most metrics are
    if mostly_alike(values, clusters):
        least, most = (0.0, 1.0) if share else seen
        values, clusters = with_imagined(values, clusters, low=least, high=most)
    low, high = map(float, clustered_mean(values, clusters).bounds(confidence))
    return Interval(estimate, max(low, 0.0) if share else low, min(high, 1.0) if share else high)


class Race:
    """Models that answer in step until they are shown to be worse than the leader; `left` are the ones in it.

    notes: what the last look fell back on.
    """

    def __init__(self, answers: Answers, *, confidence: float, margin: float | None, tuned_for: float) -> None:
        self.answers, self._margin, self._tuned_for = answers, margin, tuned_for
        self.left = list(range(len(answers.arms)))
        self._confidence = 1.0 - (1.0 - confidence) / (len(self.left) - 1)
        self._out: dict[int, int] = {}
        self._behind: dict[int, Interval] = {}
        self._tied = False
        self.notes: tuple[str, ...] = ()

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
        self._behind.pop(leader, None)
        self.notes = tuple(dict.fromkeys(note for beside in found.values() for note in beside.notes))
        for index, beside in found.items():
            self._behind[index] = beside.interval
            if beside.verdict == "worse":
                self._out[index] = len(self.answers.prompts)
        self.left = [index for index in self.left if index not in self._out]
        self._tied = all(found[index].verdict == "tied" for index in self.left if index != leader)

    def entrants(self) -> tuple[Entrant, ...]:
        """Every model with how it fared."""
        rewards = self.answers.rewards
        return tuple(
            Entrant(arm.name, self.mean(index), len(rewards[index]), self._out.get(index), self._behind.get(index))
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
