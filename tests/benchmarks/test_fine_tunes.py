"""The figures of benchmarks/fine_tunes.py on a pool that is made up, where they are known beforehand."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fine_tunes")


@pytest.fixture
def pool(benchmark):
    """Three models with right answers in .3, .55 and .62, two thirds of whose luck is common."""
    generator = np.random.default_rng(0)
    common, own = generator.random(2_000), generator.random((3, 2_000))
    luck = np.where(generator.random((3, 2_000)) < 0.67, common, own)
    rewards = (luck < np.array([[0.3], [0.55], [0.62]])).astype(float)
    return benchmark.Pool(rewards, np.array([3.0, 3.0, 4.0]))


def test_tokens_for_the_same_width_are_the_ratio_of_variances(benchmark, pool):
    second, best = pool.rewards[1:]
    assert pool.order == [2, 1, 0]
    expected = (best - second).var() / (best.var() + second.var())
    found = [benchmark.tokens_for_the_same_width(pool, np.random.default_rng(seed)) for seed in range(8)]
    assert np.mean(found) == pytest.approx(expected, rel=0.1)


def test_a_race_over_the_pool_finds_its_best_and_saves(benchmark, pool):
    """The far one is out at the first looks; the best two are 7 points apart, so 2,000 prompts leave little doubt."""
    found, took = zip(*(benchmark.chosen(pool, np.random.default_rng(seed)) for seed in range(10)), strict=True)
    assert sum(found) >= 9
    assert np.mean(took) < 0.8
