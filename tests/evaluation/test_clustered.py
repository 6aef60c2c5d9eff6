"""Standard errors that are robust to clusters, Student's t, the bootstrap, exact tests, Holm, and planning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation import student_t
from upslope.evaluation.clustered import (
    cluster_bootstrap,
    cluster_sums,
    clustered_mean,
    crossed_mean,
    mostly_alike,
    with_imagined,
)
from upslope.evaluation.exact_tests import exact_test
from upslope.evaluation.multiplicity import holm, non_inferiority_p
from upslope.evaluation.planning import detectable, plan, prompts_to_detect, samples_unpaired

REPETITIONS = 2_000


@pytest.mark.parametrize("df", [1.0, 2.7, 9.0, 199.0, 12_345.6, 1e8])
def test_students_t_is_scipys(df):
    for t in (-4.0, -0.3, 0.0, 1e-6, 1.96, 12.0):
        assert student_t.upper_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-6)
    for probability in (0.001, 0.4, 0.5, 0.975, 0.9999):
        expected = stats.t.ppf(probability, df)
        assert student_t.quantile(probability, df) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def by_matrices(values, clusters):
    """CR2 and Satterthwaite's df of a mean, by n x n matrices as Imbens & Kolesar write them."""
    n = len(values)
    hat, residual = np.full((n, n), 1 / n), values - values.mean()
    variance, columns = 0.0, []
    for name in np.unique(clusters):
        rows = clusters == name
        eigen, vectors = np.linalg.eigh(np.eye(rows.sum()) - hat[np.ix_(rows, rows)])
        root = vectors @ np.diag(eigen**-0.5) @ vectors.T
        weights = root @ np.full(rows.sum(), 1 / n)
        variance += float(weights @ residual[rows]) ** 2
        columns.append((np.eye(n) - hat)[:, rows] @ weights)
    eigen = np.linalg.eigvalsh(np.array(columns) @ np.array(columns).T)
    return math.sqrt(variance), eigen.sum() ** 2 / (eigen**2).sum()


def test_the_standard_error_is_cr2_by_matrices():
    generator = np.random.default_rng(0)
    clusters = np.array([7, 7, 7, 7, 7, 2, 2, 9, 4, 4, 4, 2])
    values = generator.normal(size=(3, 12))
    found = clustered_mean(values, clusters)
    for row in range(3):
        se, df = by_matrices(values[row], clusters)
        assert found.se[row] == pytest.approx(se, rel=1e-12)
        assert found.df == pytest.approx(df, rel=1e-10)
    assert found.num_clusters == 4


def test_without_clusters_it_is_the_ordinary_t_interval():
    values = np.random.default_rng(1).normal(size=15)
    found = clustered_mean(values)
    low, high = stats.t.interval(0.9, 14, loc=values.mean(), scale=stats.sem(values))
    assert found.bounds(0.9) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))
    assert found.df == pytest.approx(14)


def correlated(generator, sizes, between):
    """Values [R, n] with mean 0 of which all of a cluster share a part, and their clusters."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    shared = generator.normal(size=(REPETITIONS, len(sizes)))[:, clusters]
    own = generator.exponential(size=(REPETITIONS, len(clusters))) - 1.0
    return math.sqrt(between) * shared + math.sqrt(1 - between) * own, clusters


@pytest.mark.parametrize("sizes", [[1] * 40, [4] * 30, [1, 2, 3, 6] * 12])
def test_fixed_intervals_cover_as_often_as_they_say(sizes):
    """2,000 repetitions, skewed values, half of their variance shared: in [.93, .97]; without clusters far below."""
    values, clusters = correlated(np.random.default_rng(2), sizes, 0.5)
    found = clustered_mean(values, clusters)
    low, high = found.bounds(0.95)
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97
    assert abs(found.estimate.mean()) <= 3 * found.estimate.std() / math.sqrt(REPETITIONS)
    if max(sizes) > 1:
        low, high = clustered_mean(values).bounds(0.95)
        assert ((low <= 0) & (high >= 0)).mean() < 0.87


def test_the_bootstrap_resamples_whole_clusters():
    """Two clusters, drawn twice: the means are those of AA, AB, BA, BB, a quarter each."""
    values, clusters = np.array([0.0, 0.0, 0.0, 4.0]), np.array([1, 1, 1, 5])
    assert cluster_bootstrap(values, clusters, confidence=0.6) == (0.0, 4.0)
    assert cluster_bootstrap(values, clusters, confidence=0.4) == (1.0, 1.0)
    many, names = correlated(np.random.default_rng(3), [4] * 100, 0.5)
    low, high = cluster_bootstrap(many[0], names)
    found = clustered_mean(many[0], names)
    assert (high - low) == pytest.approx(2 * 1.96 * float(found.se), rel=0.1)
    assert cluster_bootstrap(many[0], names, seed=1) == cluster_bootstrap(many[0], names, seed=1) != (low, high)


def by_enumeration(values):
    sums = [0.0]
    for value in values:
        sums = [s + sign * value for s in sums for sign in (-1, 1)]
    return np.mean(np.abs(sums) >= abs(values.sum()) - 1e-9)


def test_exact_tests_count_the_signs():
    uneven = np.array([0.5, -0.25, 1.0, 0.0, 0.75, 0.3])
    assert exact_test(uneven).p_value == pytest.approx(by_enumeration(uneven[uneven != 0]))
    assert exact_test(uneven).name == "sign-flip"
    equal = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 50)
    expected = stats.binomtest(9, 11).pvalue
    assert exact_test(equal).p_value == pytest.approx(expected) == pytest.approx(by_enumeration(equal[:11]))
    assert exact_test(equal).name == "McNemar"
    assert exact_test(np.zeros(5)).p_value == 1.0
    assert exact_test(np.array([1.0, -1.0])).p_value == 1.0
    drawn = np.random.default_rng(0).normal(0.4, 1.0, size=17)
    assert exact_test(drawn).name == "sign-flip, sampled"
    assert exact_test(drawn).p_value == pytest.approx(by_enumeration(drawn), abs=0.01)


def test_exact_tests_keep_their_level_where_pairs_are_few():
    """A/A with 12 prompts and a metric of three steps: rejected in 5% at most (up to 3 standard errors)."""
    generator = np.random.default_rng(5)
    differences = generator.choice([-1.0, -0.5, 0.0, 0.5, 1.0], p=[0.1, 0.2, 0.4, 0.2, 0.1], size=(500, 12))
    rejected = np.mean([exact_test(row).p_value <= 0.05 for row in differences])
    assert rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


def test_two_imagined_prompts_are_the_adjusted_interval_for_paired_proportions():
    """Bonett & Price's formula: p = (count + 1) / (n + 2); where nothing differs, near the rule of three."""
    for won, lost, n in ((3, 1, 50), (0, 0, 300)):
        values = np.repeat([1.0, -1.0, 0.0], [won, lost, n - won - lost])
        found = clustered_mean(*with_imagined(values, None, low=-1.0, high=1.0))
        p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
        assert found.estimate == pytest.approx(p - q)
        assert found.se**2 * (n + 1) == pytest.approx(p + q - (p - q) ** 2)
    assert found.bounds(0.95)[1] == pytest.approx(3 / 300, rel=0.1)


def test_imagined_clusters_have_the_mean_size():
    values, clusters = with_imagined(np.zeros(6), np.array([9, 9, 9, 4, 4, 4]), low=-1.0, high=2.0)
    sums, sizes = cluster_sums(values, clusters)
    assert sums.tolist() == [0.0, 0.0, -3.0, 6.0]
    assert sizes.tolist() == [3, 3, 3, 3]


def test_mostly_alike():
    assert mostly_alike(np.full(2, 0.1 + 0.2))
    assert mostly_alike(np.repeat([0.3, 0.1 + 0.2, 1.0], [40, 40, 79])), "rounding makes no difference"
    assert not mostly_alike(np.repeat([0.0, 1.0], [40, 40]))
    assert not mostly_alike(np.repeat([0.0, 1.0], [900, 100])), "a hundred that differ are enough"
    assert mostly_alike(np.repeat([0.0, 1.0], [900, 100]), np.arange(1_000) // 2), "but not in fifty documents"


def test_holm_is_the_sequential_rejection():
    """At every level, an adjusted p-value is below it exactly where Holm's procedure, step by step, rejects."""
    generator = np.random.default_rng(6)
    for _ in range(50):
        values = generator.random(5) ** 3
        adjusted = holm(values.tolist())
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for step, index in enumerate(np.argsort(values)):
                if values[index] > level / (5 - step):
                    break
                rejected.add(int(index))
            assert {i for i, p in enumerate(adjusted) if p <= level} == rejected
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    with pytest.raises(DataError, match="p-values lie in"):
        holm([0.1, math.nan])


def test_non_inferiority_is_a_one_sided_test_of_the_margin():
    values = np.random.default_rng(7).normal(-0.05, 1.0, size=60)
    found = clustered_mean(values)
    p = non_inferiority_p(float(found.estimate), float(found.se), found.df, margin=0.2)
    assert p == pytest.approx(stats.ttest_1samp(values, -0.2, alternative="greater").pvalue)
    with pytest.raises(DataError, match="must be above 0"):
        non_inferiority_p(0.0, 1.0, 5.0, margin=0.0)


@pytest.mark.parametrize(("effect", "sd"), [(0.5, 1.0), (0.02, 0.3)])
def test_the_planned_number_of_prompts_has_the_power(effect, sd):
    """Against the noncentral t: enough at n, not at n - 1 (to the rounding of the quantile formula)."""
    n = prompts_to_detect(effect, sd=sd, power=0.8)

    def power(count):
        return 1 - stats.nct.cdf(stats.t.ppf(0.975, count - 1), count - 1, effect / sd * math.sqrt(count))

    assert power(n) >= 0.798
    assert power(math.floor(0.97 * n) - 1) < 0.8
    assert detectable(n, sd=sd, power=0.8) == pytest.approx(effect, rel=0.02)


def test_a_plan_from_one_models_scores():
    """Scores of 0 and 1, half each: s = .5 (n - 1 in the denominator), and the textbook's 9,800 prompts for .02."""
    scores = [0.0, 1.0] * 500
    found = plan(scores, 0.02, power=0.8)
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert found.unpaired == pytest.approx(2 * 0.25 * (z / 0.02) ** 2, rel=0.002)
    assert found.paired == pytest.approx(found.unpaired / 2, rel=0.001)
    with pytest.raises(DataError, match="scores of two prompts"):
        plan([1.0], 0.02)


def test_what_plain_averaging_would_need():
    """Two independent means of n each have the variance (v_a + v_b) / n."""
    assert samples_unpaired(0.25, 0.15, 0.02) == pytest.approx(2 * 0.4 / 0.0004)


def test_what_gives_no_standard_error_is_refused():
    with pytest.raises(DataError, match="needs two clusters"):
        clustered_mean(np.array([1.0]))
    with pytest.raises(DataError, match="needs two clusters"):
        clustered_mean(np.ones(4), np.zeros(4))
    with pytest.raises(DataError, match="not a finite number"):
        clustered_mean(np.array([1.0, math.nan]))
    with pytest.raises(DataError, match="4 values, but clusters of 3"):
        cluster_bootstrap(np.ones(4), np.arange(3))
    with pytest.raises(DataError, match="difference to detect is 0"):
        prompts_to_detect(0.0, sd=1.0)
    with pytest.raises(DataError, match="the reward is constant"):
        prompts_to_detect(0.1, sd=math.inf)
    with pytest.raises(DataError, match=r"power 1\.0"):
        prompts_to_detect(0.1, sd=1.0, power=1.0)


def test_sums_of_clusters_in_the_order_in_which_they_appear():
    sums, sizes = cluster_sums(np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([3, 1, 3, 2]))
    assert sums.tolist() == [[5.0, 2.0, 8.0]]
    assert sizes.tolist() == [2, 1, 1]


def test_seeds_crossed_with_prompts_have_the_variance_of_both():
    """x = a_s + b_p + e_sp: E[se^2] is var(a)/S + var(b)/n + 2 var(e)/(S n), the last one counted twice."""
    generator, seeds, prompts, repetitions = np.random.default_rng(0), 4, 30, 3_000
    found, covered = np.empty(repetitions), 0
    for repetition in range(repetitions):
        x = generator.normal(0, 0.1, (seeds, 1)) + generator.normal(0, 0.5, (1, prompts))
        mean = crossed_mean(x + generator.normal(0, 0.4, (seeds, prompts)))
        low, high = mean.bounds(0.95)
        found[repetition] = float(mean.se) ** 2
        covered += bool(low <= 0.0 <= high)
    expected = 0.1**2 / seeds + 0.5**2 / prompts + 2 * 0.4**2 / (seeds * prompts)
    assert abs(found.mean() - expected) <= 3 * found.std() / math.sqrt(repetitions)
    assert 0.94 <= covered / repetitions <= 0.98


def test_one_seed_is_a_mean_over_prompts_and_equal_seeds_have_no_variance_of_their_own():
    values, clusters = np.random.default_rng(1).random((1, 12)), np.arange(12) // 2
    one, plain = crossed_mean(values, clusters), clustered_mean(values[0], clusters)
    assert (one.estimate, one.se, one.df) == (plain.estimate, plain.se, plain.df)
    three = crossed_mean(np.repeat(values, 3, 0), clusters)
    assert float(three.se) == pytest.approx(float(plain.se))
    assert three.df == pytest.approx(plain.df)
