"""A small version of benchmarks/compare.py: the same experiments, fewer repetitions; the targets with their noise."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("compare")


def measured(cases):
    return {case["name"]: case["measured"] for case in cases}


def test_what_is_played_is_what_the_oracle_solves(benchmark):
    """Means of 200,000 games against exact J, with and without common numbers; controls have mean 0."""
    world = benchmark.problem(shift=0.8)
    for common in (True, False):
        played = benchmark.play(world, 1, 200_000, common=common, seed=0)
        error = played.differences.mean() - world.truth
        assert abs(error) <= 3 * played.differences.std() / 200_000**0.5
        controls = played.controls[0]
        assert (abs(controls.mean(0)) <= 3.5 * controls.std(0) / 200_000**0.5).all()


def test_unbiased_covered_and_cheaper(benchmark):
    found = measured(benchmark.bias_and_coverage(600, 100))
    assert all(value <= 3.3 for name, value in found.items() if "bias" in name)
    assert all(0.92 <= value <= 0.98 for name, value in found.items() if "coverage" in name)
    saved = measured(benchmark.savings(600, 100))
    by_design = [saved[f"samples saved over unpaired: {name}"] for name, *_ in benchmark.DESIGNS]
    assert 1.2 < by_design[0] < by_design[1], "pairs save, the control saves more"
    assert by_design[0] < by_design[2] < by_design[3], "common numbers save more than pairs, and all most"


def test_continuous_looking_keeps_its_word(benchmark):
    cases = benchmark.simultaneous(300, 500)
    assert all(case["reached"] for case in cases), cases


def test_an_effect_is_found_in_time(benchmark):
    cases = benchmark.stopping(200, tilt=0.8)
    assert all(case["measured"] >= 0.75 for case in cases if "power" in case["name"]), cases
    assert all(case["measured"] <= 1.6 for case in cases if "stopping" in case["name"]), cases


def test_the_table_says_what_was_reached(benchmark):
    case = benchmark.case("coverage", 0.9, ">= .94", np.bool_(False))
    assert benchmark.table([case]).splitlines()[-1] == "| coverage | 0.900 | >= .94 | no |"
