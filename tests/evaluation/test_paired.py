"""The difference of two models from rewards alone: verdicts, fallbacks, refusals, and what pairing saves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.paired import Pairs, difference


def pairs(n, effect, *, seed=0, samples=1, common=0.8, **more):
    """Rewards in [0, 1]: hard and easy prompts, common luck for most, b better by about `effect`."""
    generator = np.random.default_rng(seed)
    ease = generator.random((n, 1))
    luck = generator.random((2, n, samples))
    luck[1] = np.where(generator.random((n, samples)) < common, luck[0], luck[1])
    a, b = ease > luck[0], ease + effect > luck[1]
    return Pairs(a.astype(float), b.astype(float), **more)


def test_it_is_the_paired_t_test():
    both = pairs(800, 0.2)
    found = difference(both)
    expected = stats.ttest_rel(both.b[:, 0], both.a[:, 0])
    interval = expected.confidence_interval(0.95)
    assert found.estimate == pytest.approx(both.b.mean() - both.a.mean())
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert (found.bootstrap.low, found.bootstrap.high) == pytest.approx((interval.low, interval.high), abs=0.01)
    assert found.verdict == "better"
    assert found.num_samples == 1_600
    normal = np.random.default_rng(0).normal(size=(2, 12, 1))
    few = difference(Pairs(*normal)).interval
    expected = stats.ttest_rel(normal[1, :, 0], normal[0, :, 0]).confidence_interval(0.95)
    assert (few.low, few.high) == pytest.approx((expected.low, expected.high)), "few prompts, but no two alike"


def test_the_verdict_is_that_of_b():
    both = pairs(600, 0.15)
    assert difference(both).verdict == "better"
    assert difference(Pairs(both.b, both.a)).verdict == "worse"
    assert difference(pairs(600, 0.0, common=0.98), margin=0.05).verdict == "tied"
    assert difference(pairs(600, 0.0, common=0.98)).verdict == "undecided", "without a margin nothing is tied"
    assert difference(pairs(40, 0.0), margin=0.01).verdict == "undecided"


def won_on(count, n):
    """n prompts of a metric of 0 and 1, of which b alone solves `count`."""
    return Pairs(np.zeros((n, 1)), np.repeat([1.0, 0.0], [count, n - count])[:, None])


def test_few_pairs_need_the_exact_test_as_well():
    """Five prompts of twenty on which b alone is right: McNemar's p is 1/16; a t interval would say better."""
    both = won_on(5, 20)
    found = difference(both)
    assert found.test.name == "McNemar"
    assert found.test.p_value == pytest.approx(1 / 16)
    assert found.verdict == "undecided"
    assert any("exact McNemar test" in note for note in found.notes)
    assert difference(pairs(800, 0.2)).test is None


@pytest.mark.parametrize(("n", "share"), [(50, 0.1), (200, 0.02), (200, 0.05), (200, 0.1)])
def test_an_interval_of_few_that_differ_covers(n, share):
    """Enumerated: a share of prompts that b alone solves; t alone covers in .87 to .93 and calls too many a tie."""
    covered = tied = plain = 0.0
    for count in range(n // 3):
        chance = stats.binom.pmf(count, n, share)
        both = won_on(count, n)
        found = difference(both, margin=share)
        covered += chance * (found.interval.low <= share <= found.interval.high)
        tied += chance * (found.verdict == "tied")
        half = stats.t.ppf(0.975, n - 1) * float(stats.sem(both.b[:, 0]))
        plain += chance * (abs(both.b.mean() - share) <= half)
    assert covered >= 0.95
    assert tied <= 0.04, "the two differ by the margin, so every tie is an error, of which half of 5% are meant"
    assert plain <= 0.94


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_a_sequence_of_few_that_differ_covers_at_all_looks(share):
    """Enumerated over the number that b alone has solved at each look: no other error ever, in 95%."""
    inside, last = {0: 1.0}, 0
    for n in range(30, 400, 10):
        moved: dict[int, float] = {}
        for count, chance in inside.items():
            for more in range(11 if last else 31):
                step = chance * stats.binom.pmf(more, n - last, share)
                if step > 1e-9:
                    moved[count + more] = moved.get(count + more, 0.0) + step
        last, inside = n, {}
        for count, chance in moved.items():
            found = difference(won_on(count, n), method="asymptotic", tuned_for=400).interval
            if found.low <= share <= found.high:
                inside[count] = chance
    assert sum(inside.values()) >= 0.945


def test_betting_bets_in_the_order_of_the_answers():
    """By the names of the clusters the order, and so the gambler's luck, would be another one at every look."""
    generator = np.random.default_rng(3)
    names = generator.permutation(80)
    both = pairs(80, 0.3)
    for n in (20, 50, 80):
        how = {"method": "betting", "bounds": (0, 1)}
        named = difference(Pairs(both.a[:n], both.b[:n], names[:n]), **how)
        assert named.interval == difference(Pairs(both.a[:n], both.b[:n]), **how).interval


def test_prompts_of_one_document_stand_or_fall_together():
    """Each prompt written five times over: without clusters the interval would be too narrow by sqrt(5)."""
    once = pairs(60, 0.1, seed=3)
    rows = np.repeat(np.arange(60), 5)
    found = difference(Pairs(once.a[rows], once.b[rows], clusters=rows))
    alone = difference(once)
    assert found.estimate == pytest.approx(alone.estimate)
    assert found.se == pytest.approx(alone.se)
    assert found.num_clusters == 60
    assert found.test.p_value == pytest.approx(alone.test.p_value)


def test_what_plain_averaging_would_have_needed_is_what_it_needs():
    """Simulated: means over that many samples, half of them each model's, have the standard error that pairs had."""
    found = difference(pairs(2_000, 0.05))
    each = round(found.num_samples_unpaired / 2)
    generator, means = np.random.default_rng(4), []
    both = pairs(20_000, 0.05, seed=5)
    for _ in range(400):
        rows = generator.integers(20_000, size=(2, each))
        means.append(both.b[rows[0]].mean() - both.a[rows[1]].mean())
    assert np.std(means) == pytest.approx(found.se, rel=0.12)
    assert found.num_samples_unpaired > 3 * found.num_samples


def test_a_control_takes_luck_out_of_every_prompt():
    generator = np.random.default_rng(1)
    luck = generator.normal(size=(300, 2))
    ease = generator.normal(size=300)
    a, b = ease + luck[:, 0], ease + luck[:, 1] + 0.3 + 0.2 * generator.normal(size=300)
    plain = difference(Pairs(a[:, None], b[:, None]))
    controlled = difference(Pairs(a[:, None], b[:, None], controls=luck[:, ::-1]))
    assert controlled.se < 0.25 * plain.se
    assert controlled.control_share == pytest.approx((controlled.se / plain.se) ** 2)
    assert abs(controlled.estimate - 0.3) < 3 * controlled.se


@pytest.mark.parametrize("method", ["asymptotic", "betting"])
def test_sequences_are_wider_and_say_the_same(method):
    both = pairs(1_500, 0.12)
    found = difference(both, method=method, bounds=(0.0, 1.0))
    fixed = difference(both)
    assert found.verdict == "better"
    assert found.test is found.bootstrap is None, "these hold for one look only"
    assert fixed.interval.high < found.interval.high < fixed.interval.high + 0.1


def test_equal_rewards_everywhere():
    """The same model twice: tied once enough prompts were seen that few can be unlike; the p-value likewise."""
    same = np.random.default_rng(0).integers(0, 2, size=(200, 1)).astype(float)
    found = difference(Pairs(same, same), margin=0.05)
    assert found.verdict == "tied"
    assert found.estimate == 0
    assert found.interval.high == pytest.approx(3 / 200, rel=0.1)
    assert found.non_inferiority < 0.001
    assert difference(Pairs(same[:20], same[:20]), margin=0.05).verdict == "undecided"
    assert any("most prompts show the same difference" in note for note in found.notes)


def test_a_constant_reward_tells_nothing():
    found = difference(Pairs(np.ones((50, 1)), np.ones((50, 1))), margin=0.1)
    assert found.verdict == "undecided"
    assert found.interval.low == -math.inf
    assert found.se == math.inf
    assert any("the reward is constant" in note for note in found.notes)
    bounded = difference(Pairs(np.ones((50, 1)), np.ones((50, 1))), margin=0.1, bounds=(0.0, 1.0))
    assert bounded.verdict == "tied"


def test_a_control_is_not_fitted_on_a_handful():
    """With 8 prompts two useless controls would make the variance three times as large."""
    both = pairs(8, 0.1)
    found = difference(Pairs(both.a, both.b, controls=np.random.default_rng(0).normal(size=(8, 2))))
    assert found.interval == difference(both).interval
    assert any("the control was left out" in note for note in found.notes)


BAD = [
    ({"a": np.array([[1.0], [math.nan]])}, {}, "a reward of a is not a finite number"),
    ({"b": np.zeros((3, 1))}, {}, "2 and 3 prompts"),
    ({"a": np.zeros((1, 1)), "b": np.ones((1, 1))}, {}, "1 prompts in 1 cluster"),
    ({"clusters": np.zeros(2)}, {}, "2 prompts in 1 cluster"),
    ({}, {"margin": -0.1}, "the margin is -0.1"),
    ({}, {"bounds": (0.0, 0.5)}, "a reward of b lies outside the bounds 0 to 0.5"),
    ({}, {"method": "asymptotic"}, "begins at 30 prompts"),
    ({}, {"method": "betting"}, "needs bounds"),
    ({"controls": np.zeros((2, 1))}, {"method": "betting", "bounds": (0, 1)}, "leave it out"),
]


@pytest.mark.parametrize(("changed", "settings", "message"), BAD)
def test_what_gives_no_interval_is_refused(changed, settings, message):
    made = {"a": np.zeros((2, 1)), "b": np.array([[0.0], [1.0]]), **changed}
    with pytest.raises(DataError, match=message):
        difference(Pairs(**made), **settings)


def test_betting_refuses_clusters_of_unlike_sizes():
    both = pairs(3, 0.0)
    with pytest.raises(DataError, match="clusters of one size"):
        difference(Pairs(both.a, both.b, np.array([0, 0, 1])), method="betting", bounds=(0, 1))
