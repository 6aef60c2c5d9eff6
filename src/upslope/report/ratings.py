"""The store of human ratings: append-only JSON lines that several raters, tabs and processes write at once."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upslope.errors import CheckpointError, RecordError
from upslope.report.feed import Tail
from upslope.report.jsonl import JsonLines
from upslope.report.questions import Question

COMPARISONS = ("left", "right", "tie", "skip")
STARS = (1, 2, 3, 4, 5, "skip")

Rating = Mapping[str, Any]


class Ratings:
    """The ratings that stand in a file: of each question at most one by each rater, in the order they were given.

    A line has kind "rating", time [seconds since 1970], step (the newest of its samples), question, rater, verdict
    (of COMPARISONS or STARS), seconds (that the question was looked at), seed, prompt, and samples: one, or two as they
    were shown, the left first, each with id, step, weights and text. A line of kind "undo" takes a rater's rating of a
    question back. Of two ratings of one question by one rater the first stands, so that files may be joined.

    Lines are written under a lock of the file and are on the disk once `add` returns. A line torn by a crash, and one
    that is no rating, are counted as damaged.

    Raises: RecordError when its folder is not there.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise RecordError(f"{path} cannot hold ratings: there is no folder {path.parent}")
        self.path = path
        self._mutex = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._tail = Tail(self.path)
        self._standing: dict[tuple[str, str], Rating] = {}
        self.taken_back = 0
        self._odd = 0

    def standing(self) -> list[Rating]:
        """Every rating that was not taken back, as the file is now."""
        with self._mutex:
            self._refresh()
            return list(self._standing.values())

    @property
    def damaged(self) -> int:
        """Lines that cannot be read, or are neither a rating nor its undoing, as of the last reading."""
        return self._tail.damaged + self._odd

    def add(self, question: Question, verdict: str | int, *, rater: str, seconds: float, seed: int) -> bool:
        """Write a rating; False where this rater's rating of the question stands already, in another tab, say.

        Raises: RecordError when it cannot be written.
        """
        samples = [{"id": a.id, "step": a.step, "weights": a.weights, "text": a.text} for a in question.answers]
        rating = {"step": max(a.step for a in question.answers), "question": question.id, "rater": rater}
        rating |= {"verdict": verdict, "seconds": seconds, "seed": seed, "prompt": question.prompt, "samples": samples}
        with self._writing():
            fresh = (question.id, rater) not in self._standing
            if fresh:
                self._append("rating", rating)
        return fresh

    def take_back(self, question: str, *, rater: str) -> bool:
        """Undo a rater's rating of a question; False where none stands.

        Raises: RecordError when it cannot be written.
        """
        with self._writing():
            rating = self._standing.get((question, rater))
            if rating is not None:
                self._append("undo", {"step": rating["step"], "question": question, "rater": rater})
        return rating is not None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within it no other process or thread writes, and what others have written is known."""
        with self._mutex:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise RecordError(f"cannot write {self.path}: {error.strerror}; make it writable") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._refresh()
                yield
            finally:
                os.close(file)

    def _append(self, kind: str, values: Rating) -> None:
        lines = JsonLines(self.path)  # opened anew: it then ends a line that another process has torn
        try:
            lines.append({"time": time.time(), "kind": kind, **values})
            lines.sync()
        except CheckpointError as error:
            raise RecordError(f"the rating was not saved: {error.__cause__}; make room or make it writable") from error
        finally:
            lines.close()
        self._refresh()

    def _refresh(self) -> None:
        """Take in what stands in the file beyond what was read, or all of it where it is another file by now."""
        if self._tail.was_cut:
            self._begin()
        for record in self._tail.read():
            key = (str(record.get("question")), str(record.get("rater")))
            if record["kind"] == "undo":
                self.taken_back += self._standing.pop(key, None) is not None
            elif _is_rating(record):
                self._standing.setdefault(key, record)
            else:
                self._odd += 1


def _is_rating(record: Rating) -> bool:
    samples, verdict = record.get("samples"), record.get("verdict")
    if record["kind"] != "rating" or not isinstance(samples, list) or len(samples) not in (1, 2):
        return False
    if not all(isinstance(sample, dict) and isinstance(sample.get("text"), str) for sample in samples):
        return False
    known: tuple[Any, ...] = STARS if len(samples) == 1 else COMPARISONS
    return "prompt" in record and type(verdict) in (int, str) and verdict in known
