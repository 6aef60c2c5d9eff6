"""What is injected, and what is said of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class NotSurvivedError(AssertionError):
    """One sentence on what a fault did that it must not do."""


def check(held: bool, sentence: str) -> None:
    """Raises: NotSurvivedError with the sentence, unless it held."""
    if not held:
        raise NotSurvivedError(sentence)


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault to inject: which of its kind, an empty folder for it, its own random numbers, and two runs to copy or
    to compare with: the uninterrupted one (`whole`), and one that was stopped half-way (`stopped`)."""

    case: str
    folder: Path
    rng: random.Random
    whole: Path
    stopped: Path


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table: its name, what is done, what must hold, and its cases, each injected once by `inject`,
    which raises where it was not survived. refused: a bad input, which must be refused."""

    name: str
    done: str
    passes: str
    cases: tuple[str, ...]
    inject: Callable[[Injection], None]
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one injection: None where it was survived, else why not."""

    case: str
    seconds: float
    problem: str | None
