"""Baselines, group statistics and whitening against loops and the statistics module; what they do to gradients."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from upslope.errors import RecordError
from upslope.estimators import (
    Moments,
    RunningMean,
    batch_mean,
    group_mean,
    group_std,
    leave_one_out,
    running_mean_update,
    scale_by_group_std,
    whiten,
)

ROWS = st.lists(st.tuples(st.sampled_from([-7, 0, 3, 2**60]), st.floats(-100, 100)), min_size=1, max_size=12)
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def tensors(rows):
    return torch.tensor([s for _, s in rows], dtype=torch.float64), torch.tensor([g for g, _ in rows])


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_group_statistics_go_by_id(rows):
    """CHECKS 24, 31: ids are any int64, rows of a group lie anywhere, groups of any sizes, singletons included."""
    scores, group = tensors(rows)
    means, others, stds = [], [], []
    for index, (own_id, own) in enumerate(rows):
        members = [s for g, s in rows if g == own_id]
        rest = [s for i, (g, s) in enumerate(rows) if g == own_id and i != index]
        means.append(statistics.fmean(members))
        others.append(statistics.fmean(rest) if rest else own)
        stds.append(statistics.stdev(members) if len(members) > 1 else 0.0)
    assert_close(group_mean(scores, group), torch.tensor(means, dtype=torch.float64), **TOLERANCE)
    assert_close(leave_one_out(scores, group), torch.tensor(others, dtype=torch.float64), **TOLERANCE)
    assert_close(group_std(scores, group), torch.tensor(stds, dtype=torch.float64), **TOLERANCE)
    everyone = torch.tensor([statistics.fmean(s for _, s in rows)] * len(rows), dtype=torch.float64)
    assert_close(batch_mean(scores), everyone, **TOLERANCE)


def test_order_and_interleaving_of_groups_change_nothing():
    """CHECKS 31: statistics follow the rows through any permutation."""
    scores = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
    group = torch.tensor([5, 5, 5, 9, 9, 9])
    for order in itertools.permutations(range(6)):
        rows = torch.tensor(order)
        for statistic in (group_mean, leave_one_out, group_std):
            expected = statistic(scores, group)[rows]
            assert_close(statistic(scores[rows], group[rows]), expected, rtol=0, atol=1e-12)


def test_unscored_rows_leave_the_baseline():
    """CHECKS 31: a dropped row is in no mean, not a zero in it."""
    scores, group = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([1, 1, 1])
    kept = torch.tensor([0, 1])
    assert group_mean(scores[kept], group[kept]).tolist() == [2.0, 2.0]
    assert leave_one_out(scores[kept], group[kept]).tolist() == [3.0, 1.0]


@pytest.mark.parametrize("score", [0.1, 1e-30, -7.3, 1e8 + 0.1])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_scores_give_advantages_of_exactly_zero(score, size):
    """CHECKS 37 at its root: sums of 0.1 do not divide back to 0.1, yet the advantage is 0 bit for bit."""
    scores, group = torch.full((size,), score), torch.full((size,), 4)
    for baseline in (batch_mean(scores), group_mean(scores, group), leave_one_out(scores, group)):
        assert torch.equal(baseline, scores)
    assert torch.equal(group_std(scores, group), torch.zeros(size))
    assert torch.equal(scale_by_group_std(torch.ones(size), scores, group, eps=0.0), torch.zeros(size))
    assert torch.equal(whiten(scores), torch.zeros(size))


def test_a_small_spread_is_no_zero_spread():
    """Zero variance means max == min, not a small std."""
    scores, group = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), torch.tensor([0, 0])
    scaled = scale_by_group_std(scores - group_mean(scores, group), scores, group, eps=0.0)
    assert_close(scaled, torch.tensor([-1.0, 1.0], dtype=torch.float64) / 2**0.5, rtol=0, atol=1e-3)


def test_scaling_divides_by_the_sample_deviation_plus_eps():
    scores, group = torch.tensor([1.0, 2.0, 6.0, 5.0], dtype=torch.float64), torch.tensor([1, 1, 1, 2])
    scaled = scale_by_group_std(torch.ones(4, dtype=torch.float64), scores, group, eps=0.5)
    expected = 1 / (statistics.stdev([1.0, 2.0, 6.0]) + 0.5)
    assert_close(scaled, torch.tensor([expected] * 3 + [0.0], dtype=torch.float64), **TOLERANCE)


def bandit_gradient(baseline, *, size):
    """Exact expected gradient of a group of `size` on a 3-armed bandit, over that of J, by enumerating all groups."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)
    p = logits.softmax(0)
    exact = p * (rewards - (p * rewards).sum())
    total = torch.zeros(3, dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=size):
        chosen = torch.tensor(arms)
        scores = rewards[chosen]
        advantages = scores - baseline(scores)
        gradient = (advantages[:, None] * (torch.eye(3, dtype=torch.float64)[chosen] - p)).mean(0)
        total += p[chosen].prod() * gradient
    return total / exact


def test_a_group_mean_shrinks_the_gradient_and_leaving_one_out_does_not():
    """CHECKS 35 at its root: a mean over n is (n-1)/n of the policy gradient, leave-one-out is all of it."""
    for size in (2, 4):
        same = torch.zeros(size, dtype=torch.int64)
        shrunk = torch.full((3,), (size - 1) / size, dtype=torch.float64)
        assert_close(bandit_gradient(lambda s, g=same: group_mean(s, g), size=size), shrunk, **TOLERANCE)
        assert_close(bandit_gradient(batch_mean, size=size), shrunk, **TOLERANCE)
        whole = torch.ones(3, dtype=torch.float64)
        assert_close(bandit_gradient(lambda s, g=same: leave_one_out(s, g), size=size), whole, **TOLERANCE)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=4), min_size=1, max_size=5))
def test_running_mean_over_everything_is_the_mean(batches):
    """CHECKS 24: decay 1 is the mean of all scores, decay 0 of the last batch."""
    state, last = RunningMean(), RunningMean()
    for batch in batches:
        scores = torch.tensor(batch, dtype=torch.float64)
        state = running_mean_update(state, scores, decay=1.0)
        last = running_mean_update(last, scores, decay=0.0)
    assert abs(state.mean - statistics.fmean(itertools.chain(*batches))) < 1e-9
    assert state.weight == sum(map(len, batches))
    assert abs(last.mean - statistics.fmean(batches[-1])) < 1e-9


def test_running_mean_forgets_by_decay_and_survives_json():
    """CHECKS 38 at its root: the state restored from JSON goes on bit for bit."""
    state = RunningMean()
    for score in (0.1, 0.7, 0.3):
        state = running_mean_update(state, torch.tensor([score], dtype=torch.float64), decay=0.9)
    weights = [0.81, 0.9, 1.0]
    expected = sum(w * s for w, s in zip(weights, (0.1, 0.7, 0.3), strict=True)) / sum(weights)
    assert abs(state.mean - expected) < 1e-12
    assert RunningMean(**json.loads(json.dumps(dataclasses.asdict(state)))) == state
    assert running_mean_update(RunningMean(), torch.zeros(0), decay=0.9) == RunningMean()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_whitening_removes_the_mean_and_the_sample_deviation(values):
    """CHECKS 24, 30: over the actions given and nothing else; the mean IS removed."""
    x = torch.tensor(values, dtype=torch.float64)
    spread = statistics.stdev(values)
    assume(spread > 1e-3)
    expected = [(v - statistics.fmean(values)) / spread for v in values]
    assert_close(whiten(x), torch.tensor(expected, dtype=torch.float64), **TOLERANCE)


def test_moments_of_pieces_merge_to_moments_of_the_whole():
    """CHECKS 30: two ranks whiten as one."""
    x = torch.randn(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    merged = Moments.of(x[:3]).merge(Moments.of(x[3:4])).merge(Moments.of(x[4:]))
    assert_close(torch.cat((whiten(x[:4], moments=merged), whiten(x[4:], moments=merged))), whiten(x), **TOLERANCE)
    constant = Moments.of(torch.full((3,), 0.1)).merge(Moments.of(torch.full((2,), 0.1)))
    assert constant.std == 0.0
    assert Moments.of(torch.full((3,), 0.1)).merge(Moments.of(torch.full((2,), 0.2))).std > 0


def test_non_finite_scores_and_empty_batches_are_refused():
    with pytest.raises(RecordError, match="scores holds nan in row 1"):
        group_mean(torch.tensor([0.0, float("nan")]), torch.tensor([0, 0]))
    with pytest.raises(RecordError, match="one value per row"):
        leave_one_out(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RecordError, match="scores holds inf"):
        running_mean_update(RunningMean(), torch.tensor([float("inf")]), decay=0.9)
    with pytest.raises(RecordError, match="no values"):
        whiten(torch.zeros(0))
    with pytest.raises(RecordError, match="holds nan"):
        whiten(torch.tensor([float("nan"), 1.0]))
