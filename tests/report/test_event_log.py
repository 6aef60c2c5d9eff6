"""The append-only log: strict JSON, exact round trips, and whatever a crash or a full disk leaves behind."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope.errors import CheckpointError, RecordError
from upslope.report.jsonl import JsonLines


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not strict JSON")


def test_numbers_come_back_exactly_and_every_line_is_strict_json(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    values = {
        "third": 1 / 3,
        "tiny": 5e-324,
        "tensor": torch.tensor(0.1, dtype=torch.float64),
        "vector": torch.tensor([1.5, -2.0]),
        "bfloat16": torch.tensor(0.5, dtype=torch.bfloat16),
        "float32": np.float32(0.1),
        "int64": np.int64(2**62),
        "array": np.array([[1, 2], [3, 4]]),
        "flag": np.bool_(True),
        "path": Path("a/b"),
        "nested": {"list": (1, None, "x")},
    }
    log.append({"kind": "train", "step": 0, **values})
    line = (tmp_path / "log.jsonl").read_text()
    json.loads(line, parse_constant=_refuse)
    (record,), damaged = log.read()
    assert damaged == 0
    assert record == {
        "kind": "train",
        "step": 0,
        "third": 1 / 3,
        "tiny": 5e-324,
        "tensor": 0.1,
        "vector": [1.5, -2.0],
        "bfloat16": 0.5,
        "float32": float(np.float32(0.1)),
        "int64": 2**62,
        "array": [[1, 2], [3, 4]],
        "flag": True,
        "path": "a/b",
        "nested": {"list": [1, None, "x"]},
    }


def test_non_finite_floats_are_strict_json_and_come_back_as_floats(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"kind": "train", "step": 0, "a": math.inf, "b": torch.tensor([-math.inf, 1.0]), "c": {"d": math.nan}})
    raw = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=_refuse)
    assert raw["a"] == "Infinity"
    ((record,), _) = log.read()
    assert record["a"] == math.inf
    assert record["b"] == [-math.inf, 1.0]
    assert math.isnan(record["c"]["d"])


@pytest.mark.parametrize("text", ["NaN", "Infinity", "a\nb\r\u2028c", "日本語 🦊", "\ud800 lone", '"\\', "\x00"])
def test_text_comes_back_as_it_was(tmp_path, text):
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"kind": "sample", "step": 0, "text": text, "prompt": [{"role": "user", "content": text + "!"}]})
    assert len((tmp_path / "log.jsonl").read_bytes().splitlines()) == 1
    ((record,), damaged) = log.read()
    assert damaged == 0
    assert record["text"] == text
    assert record["prompt"] == [{"role": "user", "content": text + "!"}]


def test_what_has_no_json_is_refused_and_nothing_is_written(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    with pytest.raises(RecordError, match="complex"):
        log.append({"kind": "train", "step": 0, "x": 1j})
    assert log.read() == ([], 0)


def test_a_line_torn_at_any_byte_is_ended_skipped_and_counted(tmp_path):
    """kill -9 in mid-write: at most the last line is lost, the next writer's line is not glued to it."""
    log = JsonLines(tmp_path / "log.jsonl")
    for step in range(2):
        log.append({"kind": "train", "step": step, "text": "é"})
    log.close()
    data = log.path.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data) + 1):
        log.path.write_bytes(data[:cut])
        after = JsonLines(log.path)
        after.append({"kind": "train", "step": 9})
        after.close()
        records, damaged = after.read()
        whole = cut >= len(data) - 1  # all but the newline is there: nothing is lost
        assert [record["step"] for record in records] == ([0, 1, 9] if whole else [0, 9]), cut
        assert damaged == (0 if whole or cut == first else 1), cut


def test_garbage_between_lines_is_counted(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.path.write_bytes(b'{"kind":"a","step":1}\n\x00\x00\x00\n\xff\xfe\n[1]\n{"kind":"a"}\n\n{"kind":"a","step":2}\n')
    records, damaged = log.read()
    assert [record["step"] for record in records] == [1, 2]
    assert damaged == 4


def test_disk_full_in_the_log_names_the_file_and_the_log_goes_on_afterwards(tmp_path, file_size_limit):
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"kind": "train", "step": 0})
    size = log.path.stat().st_size
    with file_size_limit(size + 10), pytest.raises(CheckpointError, match=r"log\.jsonl: File too large"):
        log.append({"kind": "train", "step": 1})
    assert log.path.stat().st_size == size + 10  # the write was cut short, as on a disk that fills up
    log.append({"kind": "train", "step": 2})
    records, damaged = log.read()
    assert [record["step"] for record in records] == [0, 2]
    assert damaged == 1


def test_a_full_device_names_the_file(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"log\.jsonl: No space left on device"):
        JsonLines(tmp_path / "log.jsonl").append({"kind": "train", "step": 0})
