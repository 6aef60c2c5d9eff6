"""What was found of advantage estimators, as numbers; report.estimators says how they are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upslope.evaluation.advantage_error import Agreement, effective_clusters, reliability
from upslope.evaluation.branching import Decisions
from upslope.evaluation.estimates import MIXED, ROWS
from upslope.evaluation.intervals import Interval
from upslope.report.document import Document
from upslope.report.estimators import estimator_document

HELD_OUT, TRAINING = "held-out prompts", "training prompts"
FIGURES: Mapping[str, tuple[str, str]] = {
    "error": ("error", "E[(X - A)²] / E[A²]: 0 is perfect, 1 is what saying nothing gets"),
    "more_error": ("more than own", "error less that of the reference, on the same decisions: below 0 is better"),
    "alignment": ("alignment", "cosine of X with A: 1 is perfect, 0 unrelated; scale does not matter"),
    "slope": ("slope", "E[X A] / E[A²]: 1 leaves the policy gradient unbiased, less shrinks it"),
    "rank_corrected": ("rank", "Spearman's correlation with A, corrected for the branches' noise"),
    "sign": ("sign", "share of decisions of known sign on which the sign is right"),
}
"""Columns of the tables: what stands above them, and what they are."""

_FEW = 10  # effective prompts below which intervals are rough
_CUT = 0.05


@dataclass(frozen=True, slots=True)
class Judged:
    """One estimator at one place. family, head, lam: see estimates.Estimate. seconds: of 1,000 actions' estimates."""

    name: str
    family: str
    head: str | None
    lam: float | None
    agreement: Agreement
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where estimators were judged: prompts, and who answered them.

    spread: E[A^2]; noise: the mean variance of the branches' estimates of A, beside it; effective_prompts, reliability:
    see advantage_error; sure: the share of decisions of known sign; cut: the share of rows cut at max_new_tokens.
    Tokens are sampled actions, of rows and of branches. problem: why nothing can be said here, if so.
    """

    name: str
    num_prompts: int
    num_decisions: int
    spread: float
    noise: float
    effective_prompts: float
    reliability: float
    sure: float
    cut: float
    left_out: Mapping[str, int]
    row_tokens: int
    branch_tokens: int
    branch_s: float
    estimators: tuple[Judged, ...]
    problem: str | None

    @property
    def notes(self) -> list[str]:
        """What a reader of its figures has to know."""
        found = [f"{count} left out: {reason}" for reason, count in self.left_out.items()]
        if self.problem is None and not any(one.agreement.error for one in self.estimators):
            found.append(
                "E[A²] is not told from 0 beside the branches' noise, so nothing can be divided by it; take more "
                "prompts or branches"
            )
        elif self.problem is None and self.effective_prompts < _FEW:
            found.append(
                f"{self.effective_prompts:.1f} prompts' worth of {self.num_prompts} hold E[A²], so the intervals of "
                "what is divided by it are rough"
            )
        if self.cut > _CUT:
            found.append(f"{self.cut:.0%} of rows were cut; the truth is what they earned until then")
        return [f"{self.name}: {note}" for note in found]


@dataclass(frozen=True, slots=True)
class Fit:
    """What heads were fitted on: prompts, actions, and seconds of sampling them; seconds of fitting by name; the ridges
    that were chosen for V and for A."""

    num_prompts: int
    num_actions: int
    sample_s: float
    seconds: Mapping[str, float]
    ridge_value: float
    ridge_advantage: float


@dataclass(frozen=True, slots=True)
class EstimatorReport:
    """How far each estimator is from the true advantages, by place, and what it costs.

    reference: the estimator that the run's recipe trains with, as far as it is among them. absent: families that could
    not be judged, with the reason. rows: of each prompt; branches: after an action, and as many before it.
    """

    model: str
    task: str
    gamma: float
    temperature: float
    rows: int
    branches: int
    reference: str
    fit: Fit
    places: tuple[Place, ...]
    absent: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def judged(self) -> list[Place]:
        """The places at which something can be said: held-out prompts first."""
        return sorted(
            (place for place in self.places if place.problem is None), key=lambda place: place.name != HELD_OUT
        )

    def __str__(self) -> str:
        place = self.judged[0]
        known = [one for one in place.estimators if one.agreement.error is not None]
        if not known:
            return f"nothing can be said of the error on {place.name}: take more prompts or branches"
        best = min(known, key=lambda one: one.agreement.error.estimate if one.agreement.error else math.inf)
        own = next(one for one in place.estimators if one.name == self.reference)
        least = f"least error on {place.name}: {best.name}, {_shown(best.agreement.error)}"
        return least if best is own else f"{least}; {own.name}: {_shown(own.agreement.error)}"

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file; an interval is [estimate, low, high], and what is infinite None."""
        found: dict[str, Any] = _plain(self)
        said = {"sentence": str(self), "shown": self.judged[0].name, "figures": FIGURES}
        return found | said | {"costs": self.costs(), "where": self.where()}

    def document(self) -> Document:
        """To be read: the sentence, the errors drawn, every figure at each place, the costs, the places."""
        return estimator_document(self.as_dict())

    def costs(self) -> list[tuple[str, ...]]:
        """A table by family: what has to be sampled and fitted before, and what an estimate takes then."""
        head = ("what it rests on", "tokens to fit on", "s to sample them", "s to fit", "s for 1,000 actions")
        rows: list[tuple[str, ...]] = [(*head, "rows a prompt")]
        for family, one in {one.family: one for one in reversed(self.judged[0].estimators)}.items():
            before: tuple[str, ...] = ("–", "–", "–") if family == ROWS else ("in training", "–", "–")
            if one.head is not None:
                fit = self.fit
                before = (f"{fit.num_actions:,}", f"{fit.sample_s:.1f}", f"{fit.seconds[one.head]:.1f}")
            several = "2 or more" if family in (ROWS, MIXED) else "1"
            rows.append((family, *before, f"{one.seconds:.3f}", several))
        return [rows[0], *reversed(rows[1:])]

    def where(self) -> list[tuple[str, ...]]:
        """A table of the places: how many, how noisy, and what the truth took."""
        head = ("place", "prompts", "effective", "decisions", "E[A²]", "noise of A", "reliability", "sign known", "cut")
        rows: list[tuple[str, ...]] = [(*head, "tokens of rows", "tokens of branches", "s of branches")]
        for place in self.places:
            said = (f"{place.spread:.4f}", f"{place.noise:.4f}", f"{place.reliability:.2f}", f"{place.sure:.0%}")
            taken = (f"{place.row_tokens:,}", f"{place.branch_tokens:,}", f"{place.branch_s:.1f}")
            counts = (f"{place.num_prompts}", f"{place.effective_prompts:.1f}", f"{place.num_decisions}")
            rows.append((place.name, *counts, *said, f"{place.cut:.0%}", *taken))
        return rows


def placed(name: str, num_prompts: int, decisions: Decisions, judged: tuple[Judged, ...], problem: str | None) -> Place:
    """The place of these decisions, with what was found of their estimators."""
    truth = decisions.truth
    return Place(
        name,
        num_prompts,
        len(truth.advantages),
        truth.spread,
        float(truth.noise.mean()),
        effective_clusters(truth),
        reliability(truth),
        float(truth.sure.mean()),
        decisions.cut,
        decisions.left_out,
        decisions.row_tokens,
        decisions.branch_tokens,
        decisions.branch_s,
        judged,
        problem,
    )


def _shown(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return [_plain(bound) for bound in (value.estimate, value.low, value.high)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
