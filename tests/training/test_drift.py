"""Trends of a run: their t against SciPy's, alarms on series with and without a drift, and on two real runs."""

import random
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import pytest
from bandit import bandit_session
from scipy import stats

from upslope.training import policy_gradient
from upslope.training.alarms import Alarms
from upslope.training.drift import disagreement, lengthening, parting, repeating, trend


@pytest.mark.parametrize("n", [3, 20, 320])
def test_the_trend_is_the_slope_over_its_standard_error(n):
    values = np.random.default_rng(n).normal(5.0, 2.0, n) + 0.03 * np.arange(n)
    line = stats.linregress(np.arange(n), values)
    assert trend(values) == pytest.approx(line.slope / line.stderr, rel=1e-9)
    assert trend(-1000 * values) == pytest.approx(-line.slope / line.stderr, rel=1e-9)


def test_a_constant_has_no_trend_and_a_straight_line_has_nothing_but():
    assert all(trend([constant] * n) == 0.0 for constant in (0.0, 0.1, -0.7, 1e6 + 0.3) for n in (20, 47, 320))
    assert (trend([0.1 * step for step in range(50)]), trend([7.0 - step for step in range(50)])) == (np.inf, -np.inf)


def noisy(seed, steps, *, reward=0.0, gold=0.0, start=0):
    """Steps of unit noise around lines that rise by so much in all, from step start on."""
    draw = np.random.default_rng(seed)
    ramp = np.clip(np.arange(steps) - start, 0, None) / (steps - start)
    rewards, golds = draw.normal(reward * ramp), draw.normal(gold * ramp)
    return [{"reward": float(a), "gold": float(b)} for a, b in zip(rewards, golds, strict=True)]


def begun(series):
    """The step at which each alarm begins, by name."""
    alarms = Alarms()
    return {
        c.name: step for step, metrics in enumerate(series, 1) for c in alarms.update(metrics) if c.state == "begin"
    }


def test_parting_is_the_weaker_of_both_trends_in_its_best_window():
    series = noisy(1, 100, reward=8.0, gold=-4.0)
    expected = []
    for size in (20, 40, 80):
        lines = [stats.linregress(range(size), [m[name] for m in series[-size:]]) for name in ("reward", "gold")]
        expected.append(min(lines[0].slope / lines[0].stderr, -lines[1].slope / lines[1].stderr))
    assert parting(series) == pytest.approx(max(expected), rel=1e-9)
    assert parting(series[:19]) is None
    assert parting([{"reward": 1.0}] * 50) is None
    assert parting([*series, {"reward": 1.0}, {"skipped": 1}]) == parting(series)
    assert parting([*series, {"reward": 1.0, "gold": float("nan")}]) is None


@pytest.mark.parametrize(("steps", "change", "latest"), [(60, 8.0, 45), (160, 5.0, 155), (320, 4.0, 320)])
def test_a_reward_that_leaves_gold_behind_is_noticed_fast_or_slow(steps, change, latest):
    for seed in range(5):
        found = begun(noisy(seed, steps, reward=change, gold=-change))
        assert 20 < found["reward_hacking"] <= latest


@pytest.mark.parametrize(("reward", "gold"), [(20.0, 20.0), (20.0, 0.0), (0.0, 0.0), (-20.0, -20.0), (0.0, -20.0)])
def test_nothing_is_said_where_gold_does_not_fall_while_the_reward_rises(reward, gold):
    assert not any("reward_hacking" in begun(noisy(seed, 400, reward=reward, gold=gold)) for seed in range(3))


def ends(name, first, last, **more):
    return [{name: first, **more}] * 10 + [{name: (first + last) / 2, **more}] * 10 + [{name: last, **more}] * 10


def test_growth_is_that_of_the_first_and_last_ten_steps():
    assert lengthening(ends("length", 20.0, 50.0)) == pytest.approx(2.5)
    assert lengthening(ends("length", 2.0, 12.0)) == pytest.approx(1.5)  # from 8 actions on
    assert lengthening(ends("length", 20.0, 50.0)[:19]) is None
    assert repeating(ends("repetition", 0.1, 0.4)) == pytest.approx(0.3)
    assert disagreement(ends("reward/reward_model_std", 0.2, 0.5)) == pytest.approx(2.5)
    assert disagreement(ends("reward/reward_model_std", 0.0, 0.5)) is None
    for measure in (lengthening, repeating, disagreement):
        assert measure([{"reward": 1.0}] * 40) is None


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("length_drift", ends("length", 20.0, 50.0)),
        ("repetition_drift", ends("repetition", 0.1, 0.4)),
        ("reward_uncertainty", ends("reward/reward_model_std", 0.2, 0.5)),
    ],
)
def test_each_drift_is_an_alarm_unless_gold_rose_with_it(name, series):
    rising = [metrics | {"gold": step / 30} for step, metrics in enumerate(series)]
    assert list(begun(series)) == [name]
    assert list(begun(rising)) == ([name] if name == "reward_uncertainty" else [])
    assert list(begun([metrics | {"gold": 0.5} for metrics in series])) == [name]


def repeated(completion):
    """The share of arms pulled twice in a row."""
    arms = completion.split()
    return sum(a == b for a, b in pairwise(arms)) / 7


def variety(completion):
    return len(set(completion.split())) / 5


def noise(seed):
    draws = random.Random(seed)
    return lambda completion: draws.random()


def learned(folder, reward, metric):
    """A run over the table whose rows are up to eight pulls: (first and last ten steps' gold, alarms that begin)."""
    settings = {"preset": "rloo", "kl": "off", "group_size": 8, "prompts_per_step": 8, "max_new_tokens": 8}
    settings |= {"steps": 40, "lr": 0.15}
    with ExitStack() as stack:
        session = bandit_session(folder, settings, reward=reward, metric=metric, arms=6, stop=5, stack=stack)
        policy_gradient.train(session)
    golds = [step["gold"] for step in session.run.history()]
    alarms = {event["name"] for event in session.run.events("alarm") if event["state"] == "begin"}
    return sum(golds[:10]) / 10, sum(golds[-10:]) / 10, alarms


def test_a_policy_that_games_its_reward_is_told_and_an_honest_one_is_not(tmp_path):
    """The proxy pays repetition: variety is lost, and both alarms begin. Paid for it, or held against noise: none."""
    before, after, alarms = learned(tmp_path / "hacked", repeated, variety)
    assert after < 0.6 * before
    assert {"reward_hacking", "repetition_drift"} <= alarms
    before, after, alarms = learned(tmp_path / "honest", variety, variety)
    assert after > before
    assert not {"reward_hacking", "repetition_drift", "length_drift"} & alarms
    assert "reward_hacking" not in learned(tmp_path / "noise", repeated, noise(1))[2]


def test_a_reward_that_is_all_there_is_has_nothing_to_be_held_against(tmp_path):
    def reward(completion):
        return variety(completion)

    settings = {"preset": "rloo", "kl": "off", "group_size": 4, "prompts_per_step": 2, "max_new_tokens": 4, "steps": 1}
    with ExitStack() as stack:
        session = bandit_session(tmp_path, settings, reward=reward, arms=6, stop=5, stack=stack)
        policy_gradient.train(session)
    (step,) = session.run.history()
    assert "gold" not in step
    assert step["reward"] > 0
