"""Data files to prompts: JSONL, CSV, Parquet and Hugging Face `datasets`, with errors by file and line."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from upslope.errors import DataError, DependencyError
from upslope.records import Prompt
from upslope.tasks.prompts import UnusableError, make_prompt

MAX_LINE_BYTES = 10 * 2**20
"""Longest line of a JSONL file; a longer one is a broken file far more often than a prompt."""

_LOG = logging.getLogger(__name__)
_LINES = (".jsonl", ".json", ".ndjson")
SUFFIXES = (*_LINES, ".csv", ".tsv", ".parquet")
Record = tuple[int, Mapping[str, Any] | UnusableError]


def read_prompts(
    source: str | Path,
    *,
    prompt: str = "prompt",
    completion: str | None = None,
    rename: Mapping[str, str] | None = None,
    chat: bool = False,
    system: str | None = None,
    split: str = "train",
    strict: bool = True,
    limit: int | None = None,
    first_id: int = 0,
    check: Callable[[Prompt], None] | None = None,
) -> tuple[list[Prompt], dict[str, int]]:
    """Prompts of a data file, and the number of records skipped by reason (none when strict).

    source is a .jsonl (.json, .ndjson: one object a line), .csv, .tsv or .parquet file, a folder written by
    `datasets.save_to_disk` or one `datasets.load_dataset` understands, or the name of a dataset on the Hugging Face
    hub (split applies to folders and hub). prompt
    and completion name the columns; text makes plain prompts, lists of role and content make chats; `messages` is
    read where there is no prompt column. rename maps column names of the file to those the reward wants. chat and
    system are as in `Task`. Ids are first_id + place in the file, skipped records included, so mending one line
    moves no other prompt's random numbers. limit stops after that many prompts. check raises UnusableError for a prompt
    that the task cannot use. Environment variables in the source are filled in.

    A byte-order mark at the start is dropped; blank lines are ignored. With strict=False records that cannot be used
    are skipped, counted and logged.

    Raises: DataError naming file and line, DependencyError when a reader's package is missing.
    """
    prompts: list[Prompt] = []
    skipped: Counter[str] = Counter()
    source = _expanded(source)
    for index, (line, record) in enumerate(_records(source, split)):
        try:
            if isinstance(record, UnusableError):
                raise record
            fields = _renamed(record, rename or {})
            how: dict[str, Any] = {"column": prompt, "completion": completion, "chat": chat, "system": system}
            made = make_prompt(fields, first_id + index, origin=f"{source}:{line}", **how)
            if check is not None:
                check(made)
            prompts.append(made)
        except UnusableError as problem:
            if strict:
                raise DataError(f"{source}:{line}: {_mend(problem, record)}") from None
            skipped[str(problem)] += 1
        if limit is not None and len(prompts) >= limit:
            break
    if skipped:
        counts = ", ".join(f"{count} with {reason}" for reason, count in skipped.most_common())
        _LOG.warning("%s: skipped %d of %d records: %s", source, skipped.total(), index + 1, counts)
    if not prompts:
        raise DataError(f"{source}: there is no usable record in it; skipped {skipped.total()}")
    return prompts, dict(skipped)


def _expanded(source: str | Path) -> str | Path:
    """The source with environment variables filled in. Raises: DataError for one that is not set."""
    expanded = os.path.expandvars(source)
    unset = re.search(r"\$\{?(\w+)", str(expanded))
    if unset is not None:
        raise DataError(f"{source}: the environment variable {unset[1]} is not set; set it to the folder of the data")
    return expanded


def _mend(problem: UnusableError, record: Mapping[str, Any] | UnusableError) -> str:
    if isinstance(record, Mapping) and str(problem).startswith("no "):
        return f"the record has {problem}, only {', '.join(map(repr, record))}; name the column that holds it"
    return f"the record has {problem}; mend the line, or skip such lines with strict=False"


def _renamed(record: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, value in record.items():
        target = rename.get(name, name)
        if target in renamed:
            raise UnusableError(f"two columns named {target!r}")
        renamed[target] = value
    return renamed


def _records(source: str | Path, split: str) -> Iterator[Record]:
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _dataset_records(path, split)
    if suffix in SUFFIXES and not path.is_file():
        raise DataError(f"{source}: there is no such file; the current directory is {Path.cwd()}")
    if suffix in _LINES:
        return _json_records(path)
    if suffix in (".csv", ".tsv"):
        return _csv_records(path, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _parquet_records(path)
    if path.exists():
        raise DataError(
            f"{source}: files ending in {suffix!r} cannot be read; convert it to one of {', '.join(SUFFIXES)}"
        )
    return _hub_records(str(source), split)


def _json_records(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in _lines(file):
            if isinstance(line, UnusableError):
                yield number, line
            elif line.strip():
                yield number, _parse(line)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | UnusableError]]:
    """Lines with their numbers from 1; of one that is too long no more than the limit is ever held."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield number, UnusableError(f"more than {MAX_LINE_BYTES >> 20} MiB on its line")


def _parse(line: bytes) -> Mapping[str, Any] | UnusableError:
    if b"\0" in line:
        return UnusableError("a NUL byte")
    try:
        value = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        return UnusableError("bytes that are not UTF-8")
    except UnusableError as problem:
        return problem
    except json.JSONDecodeError as error:
        return UnusableError(f"broken JSON ({error.msg})")
    except (ValueError, RecursionError):  # a number of thousands of digits, or brackets without end
        return UnusableError("JSON nested too deep or with too long a number")
    return value if isinstance(value, dict) else UnusableError(f"a JSON {type(value).__name__} instead of an object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise UnusableError("the same key twice")
    return record


def _no_constant(name: str) -> Any:
    raise UnusableError(f"{name}, which is not JSON")


def _csv_records(path: Path, delimiter: str) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, None)
        if not header or len(set(header)) != len(header):
            raise DataError(f"{path}:1: the first line must name each column once")
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, UnusableError(f"broken CSV ({error})")
                continue
            if row is None:
                return
            if row:
                yield reader.line_num, _fields(header, row)


def _fields(header: list[str], row: list[str]) -> Mapping[str, Any] | UnusableError:
    if len(row) != len(header):
        return UnusableError("another number of fields than the header")
    if any("\udc80" <= character <= "\udcff" for field in row for character in field):
        return UnusableError("bytes that are not UTF-8")
    if any("\0" in field for field in row):
        return UnusableError("a NUL byte")
    return dict(zip(header, row, strict=True))


def _parquet_records(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DependencyError("pyarrow", "data") from None
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); write it again") from error


def _dataset_records(path: Path, split: str) -> Iterator[Record]:
    datasets = _import_datasets()
    if not any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        yield from _hub_records(str(path), split)  # a folder of data files
        return
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path}: is a damaged folder of datasets.save_to_disk ({error}); save it again") from error
    yield from enumerate(_pick_split(loaded, split, path), start=1)


def _hub_records(name: str, split: str) -> Iterator[Record]:
    datasets = _import_datasets()
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise DataError(
            f"{name}: is neither a file here nor a dataset that datasets.load_dataset gives ({error})"
        ) from error
    yield from enumerate(loaded, start=1)


def _pick_split(loaded: Any, split: str, path: Path) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(loaded)}")
    return loaded[split]


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DependencyError("datasets", "data") from None
    return datasets
