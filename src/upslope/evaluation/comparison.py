"""What a comparison found, in Python, in JSON and as a document."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upslope.evaluation.intervals import Interval
from upslope.evaluation.paired import Difference, Verdict
from upslope.evaluation.planning import prompts_to_detect
from upslope.report.document import Bars, Document, Table

_SAYS: Mapping[Verdict, str] = {
    "better": "{b} is better than {a}",
    "worse": "{b} is worse than {a}",
    "tied": "{b} and {a} are tied: they differ by less than {margin:g}",
    "undecided": "undecided between {b} and {a}",
}


@dataclass(frozen=True, slots=True)
class Look:
    """The difference as it stood after so many prompts."""

    num_prompts: int
    interval: Interval
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found of b beside a: the verdict is that of b, the difference J(b) - J(a).

    names, means: of a and b, over the same prompts. difference: see paired.Difference. looks: in turn; the last one is
    the result. common_numbers: whether the two shared their random numbers. notes name every fallback and what was left
    out. Seconds: generating_s in the models, noise_s of it in drawing from their distributions, scoring_s in rewards,
    added_s in what the comparison itself took, its control included. Answers that were logged before took no tokens.
    """

    names: tuple[str, str]
    task: str
    metric: str
    means: tuple[float, float]
    difference: Difference
    looks: tuple[Look, ...]
    common_numbers: bool
    num_tokens: int
    notes: tuple[str, ...]
    generating_s: float
    noise_s: float
    scoring_s: float
    added_s: float

    @property
    def verdict(self) -> Verdict:
        """better, worse or tied: of b beside a; undecided where the answers do not say."""
        return self.difference.verdict

    @property
    def estimate(self) -> float:
        """J(b) - J(a)."""
        return self.difference.estimate

    @property
    def interval(self) -> Interval:
        """Of J(b) - J(a)."""
        return self.difference.interval

    def prompts_to_detect(self, effect: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
        """Prompts on which a comparison like this one finds such a difference so often, by the spread seen here."""
        return prompts_to_detect(effect, sd=self.difference.sd, power=power, confidence=confidence)

    def __str__(self) -> str:
        a, b = self.names
        found = self.difference
        said = _SAYS[found.verdict].format(a=a, b=b, margin=found.margin or 0.0)
        low, high = found.interval.low, found.interval.high
        return f"{said}: {self.metric} {found.estimate:+.4f} [{low:+.4f}, {high:+.4f}] on {found.num_prompts} prompts"

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file; what is infinite is None."""
        found: dict[str, Any] = finite({"verdict": self.verdict, **dataclasses.asdict(self)})
        return found

    def document(self) -> Document:
        """To be read: the sentence, the models, the difference, every look and the notes."""
        a, b = self.names
        found = self.difference
        means = [(name, f"{mean:.4f}") for name, mean in zip(self.names, self.means, strict=True)]
        bars = [(f"interval ({found.method})", found.interval)]
        if found.bootstrap is not None:
            bars.append(("interval (bootstrap)", found.bootstrap))
        if len(self.looks) > 1:
            bars = [(f"after {look.num_prompts} prompts, {look.verdict}", look.interval) for look in self.looks]
        blocks: list[Table | Bars] = [
            Table("Models", [("model", self.metric), *means]),
            Bars("Difference", [(name, i.estimate, i.low, i.high) for name, i in bars], digits=4),
            Table("Figures", [("of the difference", ""), *self.rows()]),
        ]
        return Document(f"{b} beside {a} on {self.task}", str(self), blocks, self.notes)

    def rows(self) -> list[tuple[str, str]]:
        """The figures of the difference with their names."""
        found = self.difference
        rows = [
            ("estimate", f"{found.estimate:+.4f}"),
            ("standard error", f"{found.se:.4f}"),
            (f"interval ({found.method})", f"[{found.interval.low:+.4f}, {found.interval.high:+.4f}]"),
        ]
        if found.bootstrap is not None:
            rows.append(("interval (bootstrap)", f"[{found.bootstrap.low:+.4f}, {found.bootstrap.high:+.4f}]"))
        if found.test is not None:
            rows.append((f"p ({found.test.name})", f"{found.test.p_value:.4f}"))
        if found.non_inferiority is not None:
            rows.append((f"p (worse by {found.margin:g})", f"{found.non_inferiority:.4f}"))
        if found.control_share is not None:
            rows.append(("variance left by the control", f"{found.control_share:.2f}"))
        saved = f"unpaired averaging needs {found.num_samples_unpaired:.0f} for this standard error"
        rows.append(("samples", f"{found.num_samples}; {saved}"))
        if self.generating_s:
            rows.append(("seconds", f"{self.generating_s:.1f} generating, {self.added_s:.2f} comparing"))
        return rows


def finite(value: Any) -> Any:
    """The value with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
