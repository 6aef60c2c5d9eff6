"""The tree-search sampler: what it converges to, how it shares the work, and the model in its leaves."""

import importlib
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from upslope.tuning import surrogate, tree
from upslope.tuning.space import Choice, Parameter, Range, Space
from upslope.tuning.tree import Tried, propose

optuna = pytest.importorskip("optuna")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return importlib.import_module("tune")


def test_the_surfaces_have_the_least_values_that_are_published(benchmark):
    """Branin: Dixon & Szego 1978; Hartmann-6: its minimiser to five digits."""
    at = {"x": (math.pi + 5.0) / 15.0, "y": 2.275 / 15.0}
    assert benchmark.branin(at) == pytest.approx(0.397887, abs=1e-6)
    minimiser = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
    assert benchmark.hartmann({f"x{i}": value for i, value in enumerate(minimiser)}) == pytest.approx(
        -3.32237, abs=1e-5
    )
    bowl = {"kind": "bowl", **{f"b{i}": 0.2 + 0.15 * i for i in range(4)}}
    assert benchmark.conditional(bowl) == pytest.approx(0.2)


@pytest.mark.parametrize("index", [0, 2])
def test_median_best_is_within_five_percent_of_tpe(benchmark, index):
    """The small version of benchmarks/tune.py."""
    surface = benchmark.SURFACES[index]
    medians = {
        name: statistics.median(benchmark.best_value(surface, name, trials=35, seed=seed) for seed in range(3))
        for name in ("tree", "tpe")
    }
    assert medians["tree"] <= medians["tpe"] + 0.05 * abs(medians["tpe"])


def test_expected_improvement_is_that_of_the_posterior(monkeypatch):
    """Against the posterior by the inverse covariance, and an integral in place of the closed form."""
    monkeypatch.setattr(surrogate, "_LENGTHS", (0.4,))
    monkeypatch.setattr(surrogate, "_NOISES", (1e-2,))
    generator = np.random.default_rng(0)
    points, values, candidates = generator.random((7, 2)), generator.normal(size=7), generator.random((3, 2))

    def covariance(a, b):
        scaled = math.sqrt(5) * np.array([[math.dist(p, q) for q in b] for p in a]) / 0.4
        return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)

    scaled = (values - values.mean()) / values.std()
    inverse = np.linalg.inv(covariance(points, points) + 1e-2 * np.eye(7))
    cross = covariance(candidates, points)
    mean = cross @ inverse @ scaled
    variance = scaled @ inverse @ scaled / 7 * (1 - (cross @ inverse * cross).sum(1))
    z = np.linspace(-9, 9, 200_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected = [
        np.trapezoid(np.maximum(m + math.sqrt(v) * z - scaled.max(), 0) * density, z)
        for m, v in zip(mean, variance, strict=True)
    ]
    np.testing.assert_allclose(surrogate.expected_improvement(points, values, candidates), expected, rtol=1e-5)


def test_the_split_is_the_one_of_least_squared_error():
    """Against all splits of all axes, one by one."""
    generator = np.random.default_rng(1)
    points, rewards = generator.random((30, 3)), generator.random(30)
    rewards[points[:, 1] > 0.4] += 0.3

    def error(axis, threshold):
        below = points[:, axis] <= threshold
        parts = rewards[below], rewards[~below]
        return math.inf if min(map(len, parts)) < tree._LEAF else sum(((p - p.mean()) ** 2).sum() for p in parts)

    axis, threshold = tree._split(points, rewards)
    assert error(axis, threshold) == pytest.approx(min(error(a, t) for a in range(3) for t in points[:, a]))


def test_a_box_too_small_to_split_is_a_leaf():
    points = np.random.default_rng(0).random((2 * tree._LEAF - 1, 2))
    assert tree._split(points, points[:, 0]) is None
    assert tree._split(np.ones((40, 2)), np.arange(40.0)) is None, "equal points cannot be told apart"


KINDS = Space(
    (
        Parameter("kind", Choice(("a", "b", "c"))),
        Parameter("x", Range(0.0, 1.0), {"kind": ("b",)}),
        Parameter("n", Range(1, 8), {"kind": ("c",)}),
    )
)


def test_every_branch_is_visited_and_the_best_one_most():
    """As UCB1 does: arms of 0.1, 0.9 and 0.5 in ranks; none is starved, and the best has most of the visits."""
    worth = {"a": 0.1, "b": 0.9, "c": 0.5}
    tried = []
    for step in range(40):
        values = propose(KINDS, tried, np.random.default_rng(step))
        assert ("x" in values, "n" in values) == (values["kind"] == "b", values["kind"] == "c")
        tried.append(Tried(values, worth[values["kind"]] + 0.01 * values.get("x", 0.0)))
    visits = {kind: sum(trial.values["kind"] == kind for trial in tried) for kind in worth}
    assert {trial.values["kind"] for trial in tried[:3]} == set(worth)
    assert visits["b"] > visits["c"] > visits["a"] >= 2


def test_running_trials_send_others_elsewhere():
    """A virtual loss: three workers that ask before anything has ended get three branches."""
    running = []
    for worker in range(3):
        running.append(Tried(propose(KINDS, running, np.random.default_rng(worker)), None))
    assert {trial.values["kind"] for trial in running} == {"a", "b", "c"}


def test_what_is_proposed_follows_from_the_trials_alone():
    tried = [Tried({"kind": "b", "x": x}, -((x - 0.3) ** 2)) for x in np.linspace(0, 1, 20)]
    tried += [Tried({"kind": "a"}, -9.0), Tried({"kind": "c", "n": 3}, -9.0)] * 6
    first, second = (propose(KINDS, tried, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert first["kind"] == "b"
    assert abs(first["x"] - 0.3) < 0.06


def test_whole_numbers_and_values_of_lists_are_proposed_as_they_are():
    space = Space((Parameter("n", Range(1, 64, True)), Parameter("betas", Choice(((0.9, 0.95), (0.9, 0.999))))))
    tried = []
    for step in range(30):
        values = propose(space, tried, np.random.default_rng(step))
        assert isinstance(values["n"], int)
        assert values["betas"] in space.parameters[1].domain.values
        tried.append(Tried(values, -abs(math.log(values["n"] / 20)) + (values["betas"][1] == 0.999)))
    best = max(tried, key=lambda trial: trial.reward).values
    assert 18 <= best["n"] <= 22
    assert best["betas"] == (0.9, 0.999)
