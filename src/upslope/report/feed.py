"""What an open page has still to be told of a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upslope.report.jsonl import parse_line, standing
from upslope.report.run import Run
from upslope.report.summary import HeldOut, state, summarise


class Tail:
    """The lines of a file as they are appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.damaged = 0

    @property
    def was_cut(self) -> bool:
        """Whether the file is shorter than what was read of it: it is another file now."""
        return self._size() < self._offset

    def read(self) -> list[dict[str, Any]]:
        """The records of the whole lines that have come since the last call."""
        if self._size() <= self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        parsed = [parse_line(line) for line in whole.split(b"\n") if line.strip()]
        self.damaged += parsed.count(None)
        return [record for record in parsed if record is not None]

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


class Feed:
    """Updates for one page. The first says all; a later one holds the columns and rollouts of new steps only, and the
    rest anew. Where a resume takes steps back, or the run is begun again, everything is said once more."""

    def __init__(self, run: Run, *, held_out: HeldOut) -> None:
        self._run = run
        self._held_out = held_out
        self._begin()

    def _begin(self) -> None:
        self._events_tail = Tail(self._run.events_path)
        self._samples_tail = Tail(self._run.samples_path)
        self._events: list[dict[str, Any]] = []
        self._told = -1
        self._state = ""
        self._whole = True

    def poll(self) -> dict[str, Any] | None:
        """`{"whole": bool, "run": summarise(...)}`, or None where nothing has happened since the last call."""
        if self._events_tail.was_cut or self._samples_tail.was_cut:
            self._begin()
        events, samples = self._events_tail.read(), self._samples_tail.read()
        if not self._whole and any(record["kind"] == "resume" for record in events + samples):
            self._begin()
            events, samples = self._events_tail.read(), self._samples_tail.read()
        now = state(self._run)
        if not (self._whole or events or samples or now != self._state):
            return None
        self._events = standing(self._events + events)
        update = {"whole": self._whole, "run": self._summary(samples)}
        self._state, self._whole = now, False
        self._told = max((event["step"] for event in self._events if event["kind"] == "train"), default=-1)
        return update

    def _summary(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return summarise(
            self._run,
            self._events,
            [record for record in standing(samples) if record["kind"] != "resume"],
            held_out=self._held_out,
            damaged=self._events_tail.damaged + self._samples_tail.damaged,
            after=self._told,
        )
