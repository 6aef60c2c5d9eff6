"""Where the time of a run's steps went, from the times that every step logs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from upslope.errors import RecordError
from upslope.report.run import Run, write_text

PARTS = (
    *("prefill", "decode", "sample", "reward", "score", "reference"),
    *("forward", "backward", "optimiser", "load", "other"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """Over so many steps: median seconds of a step, median seconds of each part and its share of all time, and median
    tokens per second of each phase. `other` is what stands under no part."""

    steps: int
    step_s: float
    seconds: Mapping[str, float]
    shares: Mapping[str, float]
    tokens_per_s: Mapping[str, float]

    @staticmethod
    def of(run: Run) -> Profile:
        """The profile of all steps that stand in the run's log. Raises: RecordError when none logged its times."""
        timed = [step for step in run.history() if "time/other" in step]
        if not timed:
            raise RecordError(f"{run.folder} logged the times of no step, so there is nothing to profile")
        columns = {part: [step.get(f"time/{part}", 0.0) for step in timed] for part in PARTS}
        total = sum(step["step_s"] for step in timed)
        rates: dict[str, list[float]] = {}
        for step in timed:
            for name, value in step.items():
                if name.startswith("tokens_per_s/"):
                    rates.setdefault(name.removeprefix("tokens_per_s/"), []).append(value)
        return Profile(
            steps=len(timed),
            step_s=statistics.median(step["step_s"] for step in timed),
            seconds={part: statistics.median(column) for part, column in columns.items() if any(column)},
            shares={part: sum(column) / total for part, column in columns.items() if any(column)},
            tokens_per_s={phase: statistics.median(values) for phase, values in rates.items()},
        )

    def markdown(self) -> str:
        """Two tables: seconds and share of each part, tokens per second of each phase."""
        lines = [
            f"{self.steps} steps of {self.step_s:.3f} s (median)",
            "",
            "| part      | seconds  | share  |",
            "| --------- | -------- | ------ |",
            *(f"| {part:<9} | {self.seconds[part]:8.3f} | {self.shares[part]:6.1%} |" for part in self.seconds),
            "",
            "| phase     | tokens/s |",
            "| --------- | -------- |",
            *(f"| {phase:<9} | {rate:8.0f} |" for phase, rate in self.tokens_per_s.items()),
        ]
        return "\n".join(lines) + "\n"

    def write(self, run: Run) -> None:
        """profile.json and profile.md in the run folder. Raises: CheckpointError when they cannot be written."""
        write_text(run.folder / "profile.json", json.dumps(asdict(self), indent=2) + "\n")
        write_text(run.folder / "profile.md", self.markdown())
