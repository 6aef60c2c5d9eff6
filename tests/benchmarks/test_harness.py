"""The benchmarks' harness: sides take turns in processes of their own, and a side that cannot run says why."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIDES = '''
import time
from pathlib import Path

def sleeps(turn, *, log, name, seconds, tokens=None):
    """Writes its name and whether it begins or ends, so that the order of both sides can be read."""
    while True:
        turn(**({} if tokens is None else {"tokens": tokens}))
        with Path(log).open("a") as file:
            file.write(f"{name} begins\\n")
            time.sleep(seconds)
            file.write(f"{name} ends\\n")

def holds(turn, *, mebibytes):
    held = b"x" * (mebibytes << 20)
    while True:
        turn()

def prints(turn):
    while True:
        turn()
        print('{"seconds": 1e9}')

def breaks(turn):
    turn()
    raise ValueError("there is no such model")
'''


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("harness")


@pytest.fixture
def results(harness):
    return importlib.import_module("results")


@pytest.fixture
def side(harness, tmp_path):
    script = tmp_path / "sides.py"
    script.write_text(SIDES)

    def make(name, function, environment=None, /, **options):
        return harness.Side(name, str(script), function, options, environment)

    return make


def sleeper(side, tmp_path, name, seconds, **options):
    return side(name, "sleeps", log=str(tmp_path / "log"), name=name, seconds=seconds, **options)


def test_sides_take_turns_after_both_are_warm(harness, side, tmp_path):
    sides = [sleeper(side, tmp_path, "a", 0.05), sleeper(side, tmp_path, "b", 0.15)]
    first, second = harness.measure(sides, repeats=3, warmups=1, peers=tmp_path)
    assert (tmp_path / "log").read_text().split("\n")[:-1] == [
        f"{name} {what}" for name in "abababab" for what in ("begins", "ends")
    ]
    assert all(0.05 <= seconds < 0.15 for seconds in first.seconds)
    assert all(0.15 <= seconds < 0.45 for seconds in second.seconds)
    assert len(first.seconds) == len(second.seconds) == 3


def test_memory_is_each_sides_own(harness, side, tmp_path):
    small, large = harness.measure(
        [side("small", "holds", mebibytes=1), side("large", "holds", mebibytes=201)], repeats=1, peers=tmp_path
    )
    assert 195 << 20 < large.peak_bytes - small.peak_bytes < 215 << 20


def test_what_a_side_prints_is_no_answer(harness, side, tmp_path):
    (measured,) = harness.measure([side("loud", "prints")], repeats=2, peers=tmp_path)
    assert max(measured.seconds) < 10


def test_failures_are_kept_and_the_other_side_goes_on(harness, results, side, tmp_path):
    sides = [
        sleeper(side, tmp_path, "upslope", 0.01),
        side("broken", "breaks"),
        side("absent", "holds", "trl", mebibytes=1),
        side("slow", "sleeps", log=str(tmp_path / "slow"), name="slow", seconds=30),
    ]
    own, *others = harness.measure(sides, repeats=2, peers=tmp_path, timeout_s=5)
    assert len(own.seconds) == 2
    assert own.problem is None
    problems = ["failed: ValueError: there is no such model", "not installed: make bench-peers", "took longer than 5 s"]
    assert [other.problem for other in others] == problems
    case = results.compare("x", own, others[1], unit="s/step")
    assert (case["peer"], case["ratio"], case["memory_ratio"]) == (None, None, None)
    assert "not installed: make bench-peers" in results.table([case])


def measured(harness, name, seconds, peak, tokens=None):
    counts = {} if tokens is None else {"tokens": tokens}
    answers = [{"seconds": s, "peak_bytes": peak, **counts} for s in seconds]
    return harness.Measured(harness.Side(name, "", ""), answers, {"torch": "2"})


def test_ratios_are_above_one_where_upslope_is_ahead(harness, results):
    own = measured(harness, "upslope", [2.0, 1.0, 3.0], 1 << 30, tokens=60)
    peer = measured(harness, "peer", [8.0, 6.0, 9.0], 4 << 30, tokens=60)
    by_time = results.compare("x", own, peer, unit="s/step", least_s=0.5)
    by_rate = results.compare("x", own, peer, unit="tokens/s", least_s=0.5)
    assert (by_time["upslope"], by_time["peer"], by_time["ratio"]) == (2.0, 8.0, 4.0)
    assert (by_rate["upslope"], by_rate["peer"], by_rate["ratio"]) == (30.0, 7.5, 4.0)
    assert (by_time["upslope_min"], by_time["upslope_max"]) == (1.0, 3.0)
    assert (by_rate["peer_min"], by_rate["peer_max"]) == (60 / 9, 10.0)
    assert (by_time["ratio_min"], by_time["ratio_max"]) == (3.0, 6.0)
    assert by_time["memory_ratio"] == 0.25
    assert (by_time["upslope_share"], by_time["peer_share"]) == (0.25, 0.0625)


def test_range_of_a_ratio_holds_it_where_a_side_had_fewer_repetitions(harness, results):
    case = results.compare(
        "x", measured(harness, "upslope", [2.0, 1.0, 4.0], 1), measured(harness, "peer", [8.0], 1), unit="s/step"
    )
    assert (case["ratio_min"], case["ratio"], case["ratio_max"]) == (2.0, 4.0, 8.0)


def test_alarms_and_evaluations_are_no_repetition(harness):
    counts = []
    each = importlib.import_module("step_grpo").EachStep(lambda **answer: counts.append(answer), tokens=7)
    each.log(5, {"step_s": 1.0, "time/load": 0.2, "gap_max": 1e-5})
    each.log(5, {"alarm/never_ends": 1.0})
    assert counts == [{"tokens": 7, "gap_max": 1e-5, "load_s": 0.2}]


def test_results_file_holds_the_cases_and_the_page_their_table(harness, results, tmp_path, capsys):
    case = results.plain("growth", 2.0, 3.0, unit="x", peer_name="linear")
    results.report("made_up", [case], ceilings={"GFLOP/s": 400.0}, results=tmp_path)
    document = json.loads((tmp_path / "made_up.json").read_text())
    assert {"name", "peer", "upslope", "ratio", "memory_ratio", "unit"} <= document["cases"][0].keys()
    assert document["cases"][0]["ratio"] == 1.5
    page = results.rewritten("before\n<!-- results: made_up -->\nold\n<!-- end -->\nafter", tmp_path)
    assert "old" not in page
    assert "| growth | upslope | linear | x | 2.00 | 3.00 | 1.50 |" in page
    assert results.table([case]) in capsys.readouterr().out
    assert results.rewritten(page, tmp_path) == page


def test_page_shows_the_results_that_lie_beside_it(results):
    """Where this fails, run `python benchmarks/results.py`."""
    page = results.PAGE.read_text()
    assert re.findall(r"<!-- results: (\w+) -->", page)
    assert results.rewritten(page) == page
