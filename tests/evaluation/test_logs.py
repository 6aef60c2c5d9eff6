"""Logs of lm-evaluation-harness 0.4.13, as it wrote them: stories260k, and the same with noise on its weights.

lm_eval --model hf --model_args pretrained=FOLDER --tasks local_capitals --include_path . --log_samples --output_path .
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.logs import compare_logs

FILE = "samples_local_capitals_2026-11-30T04-17-01.285428.jsonl"
LOGS = [Path(__file__).parent / "data" / name / FILE for name in ("stories260k", "noisy")]


def lines(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def rewritten(tmp_path):
    """The second log with every line changed, or left out where the change gives None."""

    def write(change, name="changed.jsonl"):
        changed = [line for line in map(change, lines(LOGS[1])) if line is not None]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in changed))
        return tmp_path / name

    return write


def test_means_are_the_harness_own_and_the_test_is_mcnemars():
    """1.000 and .667 stood in its table; eight documents of 24 differ, all against the second."""
    found = compare_logs(*LOGS, metric="acc")
    assert found.means == pytest.approx((1.0, 0.667), abs=5e-4)
    assert found.names == ("stories260k", "noisy")
    assert found.task == "local_capitals"
    assert found.verdict == "worse"
    assert found.difference.test.p_value == pytest.approx(stats.binomtest(0, 8).pvalue)
    assert compare_logs(*LOGS, metric="acc_norm").means == pytest.approx((0.917, 0.5), abs=5e-4)


def test_fields_of_the_documents_are_clusters():
    """Twelve stories asked twice: the standard error is that of the twelve means."""
    found = compare_logs(*LOGS, metric="acc", cluster="story")
    by_story = np.zeros(12)
    for one, other in zip(*map(lines, LOGS), strict=True):
        by_story[one["doc"]["story"]] += (other["acc"] - one["acc"]) / 2
    assert found.difference.num_clusters == 12
    assert found.difference.se == pytest.approx(stats.sem(by_story))


def test_what_cannot_be_paired_is_left_out_and_said(rewritten):
    def change(line):
        if line["doc_id"] == 3:
            return None
        if line["doc_id"] == 5:
            line["acc"] = math.nan
        line["prompt_hash"] = "another template"
        return line

    found = compare_logs(LOGS[0], rewritten(change), metric="acc")
    assert found.difference.num_prompts == 22
    assert "1 documents are in one log only and were left out" in found.notes
    assert "1 documents have no finite acc and were left out" in found.notes
    assert any(note.startswith("22 prompts are worded differently") for note in found.notes)


def test_one_of_several_filters_is_named(rewritten, tmp_path):
    strict, loose = (rewritten(lambda line, name=name: line | {"filter": name}, name) for name in ("strict", "loose"))
    both = tmp_path / "both.jsonl"
    both.write_text(strict.read_text() + loose.read_text().replace('"acc": 0.0', '"acc": 1.0'))
    with pytest.raises(DataError, match="logs the filters loose, strict; say which one"):
        compare_logs(both, both, metric="acc")
    means = [compare_logs(both, both, metric="acc", filter_name=name).means[0] for name in ("loose", "strict")]
    assert means == pytest.approx([1.0, 2 / 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line | {"doc_hash": "x" * line["doc_id"]}, "document 0 of .* is another one in"),
        (lambda line: line | {"doc_id": 0}, "holds document 0 more than once"),
        (lambda line: line | {"doc_id": line["doc_id"] + 99}, "no document in common"),
        (lambda line: line | {"acc": [-3.0, 5]}, r"acc of document 0 in .* is \[-3.0, 5\], which is no number"),
        (lambda line: {"step": 1}, "line 1 is none of lm_eval's samples"),
    ],
)
def test_what_is_no_pair_of_logs_is_refused(rewritten, change, message):
    with pytest.raises(DataError, match=message):
        compare_logs(LOGS[0], rewritten(change), metric="acc")


def test_what_has_to_be_said_is_asked_for(tmp_path):
    with pytest.raises(DataError, match="logs the metrics acc, acc_norm; say which"):
        compare_logs(*LOGS)
    with pytest.raises(DataError, match="logs no 'f1' of document 0; it logs acc, acc_norm"):
        compare_logs(*LOGS, metric="f1")
    with pytest.raises(DataError, match="no field 'page'"):
        compare_logs(*LOGS, metric="acc", cluster="page")
    with pytest.raises(DataError, match="can only be compared with another log"):
        compare_logs(LOGS[0], tmp_path, metric="acc")
    (tmp_path / "broken.jsonl").write_text('{"doc_id": 0')
    with pytest.raises(DataError, match=r"broken.jsonl, line 1 is not JSON"):
        compare_logs(LOGS[0], tmp_path / "broken.jsonl", metric="acc")
