"""Append-only JSON lines: one write a line, strict JSON, and a reader that survives what a crash left behind."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import CheckpointError, RecordError

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# kinds of events that stand whatever step a run is resumed from
ABOUT_THE_FOLDER = frozenset({"resume", "stale_lock", "settings", "damaged_checkpoint"})
_SPELT = (b'"NaN"', b'Infinity"')
# a model may well write "NaN", and a person be called so
_TEXT = frozenset({"kind", "prompt", "text", "pieces", "stop_reason", "failure", "rater"})


def to_json(value: Any) -> Any:
    """The value in strict JSON's types: tensors and NumPy values as numbers or (nested) lists, paths as text.

    Strict JSON has no NaN, so non-finite floats become the strings "NaN", "Infinity" and "-Infinity", as in Protobuf's
    JSON; `JsonLines.read` turns these back. Raises: RecordError for a type that has no JSON.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _spell(value)
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise RecordError(
        f"a {type(value).__name__} cannot be logged: give a number, a string, a tensor, or lists of these"
    )


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {name: item if name in _TEXT else _from_json(item) for name, item in value.items()}
    return [_from_json(item) for item in value] if isinstance(value, list) else value


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of one line, None where it is damaged: no JSON object, or without a kind and a whole step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        return None
    spelt = any(name in line for name in _SPELT)  # most lines have none, and some lines are long
    return _from_json(record) if spelt else record


def standing(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that no later resume from an earlier step has replaced."""
    kept: list[dict[str, Any]] = []
    for record in records:
        if record["kind"] == "resume":
            kept = [r for r in kept if r["step"] <= record["step"] or r["kind"] in ABOUT_THE_FOLDER]
        kept.append(record)
    return kept


class JsonLines:
    """A file of one JSON object a line. Each line is one `write` to a file opened for appending, so that a process
    killed at any moment leaves at most one torn line, the last. The next writer ends that line; readers count it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line. Raises: CheckpointError naming the file when it cannot be written, as on a full disk."""
        line = json.dumps(to_json(record), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = memoryview(line.encode("utf-8", "backslashreplace"))  # a lone surrogate: \ud800 is JSON for it
        try:
            if self._file is None:
                self._file = self._open()
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self.close()  # the next append opens afresh and ends the torn line
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror}; make room or make it writable, then resume the run"
            ) from error

    def sync(self) -> None:
        """Wait until what was appended is on the disk. Raises: CheckpointError naming the file where it cannot be."""
        assert self._file is not None, "nothing was appended"
        try:
            os.fsync(self._file)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}") from error

    def _open(self) -> int:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")
        return file

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """All records in the order they were written, and the number of damaged lines that were skipped."""
        records: list[dict[str, Any]] = []
        damaged = 0
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            if not line.strip():
                continue
            record = parse_line(line)
            if record is None:
                damaged += 1
            else:
                records.append(record)
        return records, damaged

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
