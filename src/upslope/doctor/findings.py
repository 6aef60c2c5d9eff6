"""What the doctor finds: one line each, and checks that go on after one has failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from upslope.errors import UpslopeError

Level = Literal["ok", "warning", "error"]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report. An error means that the recipe will not learn, or not run; a mend says what to
    change. values are its figures, for machines."""

    check: str
    level: Level
    text: str
    mend: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class Findings:
    """Findings in the order in which they were made."""

    def __init__(self, show: Callable[[Finding], None] = lambda _: None) -> None:
        self.found: list[Finding] = []
        self._show = show

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    @property
    def healthy(self) -> bool:
        """True where nothing is an error."""
        return all(finding.level != "error" for finding in self.found)

    def add(self, check: str, level: Level, text: str, mend: str = "", **values: Any) -> None:
        """Note one finding."""
        self.found.append(Finding(check, level, text, mend, values))
        self._show(self.found[-1])

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """A check whose exceptions are findings: whatever a recipe, model, task or reward of the user's may raise."""
        try:
            yield
        except UpslopeError as error:
            self.add(name, "error", str(error))
        except Exception as error:
            self.add(name, "error", f"it raised {type(error).__name__}: {error}")

    def result(self, check: str, function: Callable[[], Found]) -> Found | None:
        """What the function returns, or None where it raised and that was noted."""
        results: list[Found] = []
        with self.check(check):
            results.append(function())
        return results[0] if results else None
