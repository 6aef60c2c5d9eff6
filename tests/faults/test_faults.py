"""A part of `make faults` in every test run: the same table, one injection a row, and how it keeps its books."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from faults import page, trials
from faults.processes import survivors
from faults.table import TABLE
from faults.verdict import Fault, NotSurvivedError, Verdict, check
from upslope.rewards.sandbox.confinement import missing

ROOT = Path(page.__file__).parents[1]
COUNTS = {  # the table of faults: what is injected how often
    "kill-while-saving": 30, "kill-at-random": 10, "disk-full": 10, "truncated": 20, "flipped": 20, "sigterm": 20,
    "sigint-twice": 4, "read-only": 4, "missing": 4, "stale-lock": 4, "non-finite": 60, "reward": 28, "program": 16,
    "rollouts": 12, "data-lines": 20, "memory": 3, "model-mismatch": 6, "checkpoint-mismatch": 3,
}  # fmt: skip


LACKS = missing()
ROWS = [fault for fault in TABLE if fault.name != "program" or not LACKS]

pytestmark = pytest.mark.timeout(600)  # a busy machine takes minutes for half a minute of work


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the command says of one injection of each row, in a fresh process."""
    here = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path_factory.mktemp("faults"))}
    environment = {**os.environ, **here}
    command = [sys.executable, "-m", "faults", "--each", "1", "--fault", *(fault.name for fault in ROWS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name)
def test_survived(told, fault):
    """CHECKS 38 and the table of faults."""
    if fault not in ROWS:
        pytest.skip(f"this machine lacks {LACKS} for the sandbox")
    word = "refused" if fault.refused else "survived"
    assert re.search(rf"^{fault.name} +n=1 +{word}=1 ", told[1], re.MULTILINE), told[1]


def test_last_line_counts_both_kinds(told):
    refused = sum(fault.refused for fault in ROWS)
    survived = len(ROWS) - refused
    last = f"faults: survived={survived} injected={survived} refused={refused} tried={refused}"
    assert (told[0], told[1].splitlines()[-1]) == (0, last)


def test_the_whole_table_is_injected_in_full():
    assert {fault.name: len(fault.cases) for fault in TABLE} == COUNTS
    assert all(len(set(fault.cases)) == len(fault.cases) for fault in TABLE)


def _inject(tmp_path, function):
    fault = Fault("made-up", "", "", ("a case",), function)
    (verdict,) = trials.inject(fault, fault.cases, 7, (tmp_path, tmp_path / "whole", tmp_path / "stopped"))
    return verdict


def _exits(_):
    os._exit(3)


def _hangs(_):
    while True:
        pass


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda injection: None, None),
        (lambda injection: check(False, f"{injection.rng.random():.6f}"), "0.380056"),
        (lambda injection: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda injection: json.loads("{"), "JSONDecodeError: "),
        (_exits, "it ended without a word"),
        (_hangs, "took longer than 1 s"),
    ],
    ids=["survived", "not survived", "raises", "damaged", "exits", "hangs"],
)
def test_verdicts(tmp_path, monkeypatch, function, problem, capfd):
    """A trial that fails in any way is told as not survived, with its own random numbers by seed, fault and case."""
    monkeypatch.setattr(trials, "LIMIT_S", 1)
    verdict = _inject(tmp_path, function)
    assert verdict.case == "a case"
    assert (verdict.problem or "").startswith(problem or "")
    assert (verdict.problem is None) == (problem is None)


def test_what_a_trial_leaves_running_is_killed(tmp_path):
    def leaves(injection):
        (tmp_path / "group").write_text(str(os.getpgrp()))
        if not os.fork():
            os.execvp("sleep", ["sleep", "1000"])

    assert _inject(tmp_path, leaves).problem is None
    assert survivors([int((tmp_path / "group").read_text())]) == []


def test_check_raises_its_sentence():
    check(True, "never said")
    with pytest.raises(NotSurvivedError, match=r"^a sentence$"):
        check(False, "a sentence")


def test_page_shows_the_results_that_lie_beside_it():
    """Where this fails, `make faults` has not been run to its end."""
    text = page.PAGE.read_text()
    assert "<!-- faults -->" in text
    assert page.rewritten(text, page.read()) == text


def test_fractions_add_up_and_failures_are_named(tmp_path, monkeypatch):
    """Rows measured on different days stand together; what was not survived is said."""
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.PAGE.write_text("before\n<!-- faults -->\nold\n<!-- end -->\nafter")
    survived, refused = TABLE[0], next(fault for fault in TABLE if fault.refused)
    page.keep(survived, [Verdict("1", 1.0, None), Verdict("2", 2.0, "a weight was lost")], seed=3)
    page.keep(refused, [Verdict("1", 1.0, None)], seed=3)
    text = page.PAGE.read_text()
    assert text.startswith("before\n<!-- faults -->\nFaults survived: **1 of 2**, measured 20")
    assert "Bad inputs refused: **1 of 1**, measured 20" in text
    assert f"Not survived: {survived.name}, 2: a weight was lost." in text
    assert text.endswith("<!-- end -->\nafter")
    assert page.rewritten(text, page.read()) == text
