"""What a comparison found, in Python, JSON and Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upslope.evaluation.intervals import Interval
from upslope.evaluation.paired import Difference, Verdict
from upslope.evaluation.planning import prompts_to_detect

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
    added_s in what the comparison itself took, its control included.
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
        found: dict[str, Any] = _finite({"verdict": self.verdict, **dataclasses.asdict(self)})
        return found

    def markdown(self) -> str:
        """The sentence, a table and the notes."""
        rows = [("", *self.names), (self.metric, *(f"{mean:.4f}" for mean in self.means))]
        tables = [_table(rows), _table([("of the difference", ""), *self.rows()])]
        return "\n\n".join([f"**{self}**", *tables, *(f"- {note}" for note in self.notes)]) + "\n"

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
        rows.append(("seconds", f"{self.generating_s:.1f} generating, {self.added_s:.2f} comparing"))
        return rows


def _table(rows: list[Any]) -> str:
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
