"""Scans, returns and advantages against loops over time written from their definitions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from upslope.errors import RecordError
from upslope.estimators import (
    discounted_returns,
    gae,
    lambda_returns,
    n_step_returns,
    reverse_scan,
    row_ends,
    row_ids,
    row_starts,
    row_sum,
    vtrace,
    windowed_scan,
)
from upslope.evaluation.oracle import action_rewards, enumerate_sequences, num_prefixes, solve, tabular_logits
from upslope.records import pack, unpack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
FRACTION = st.sampled_from([0.0, 0.3, 0.95, 1.0])
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def draw(lengths, seed=0):
    """rewards, values [M]; num_actions, bootstrap [B], every other row cut."""
    generator = torch.Generator().manual_seed(seed)
    num_actions = torch.tensor(lengths)
    rewards, values = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
    bootstrap = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    bootstrap[::2] = 0.0
    return rewards, values, num_actions, bootstrap


def by_row(function, num_actions, bootstrap, *packed):
    """The loop reference `function(*lists of one row, bootstrap)` over every row, packed again."""
    rows = zip(*(x.split(num_actions.tolist()) for x in packed), strict=True)
    results = [function(*(x.tolist() for x in row), b) for row, b in zip(rows, bootstrap.tolist(), strict=True)]
    return torch.tensor([value for row in results for value in row], dtype=torch.float64)


def loop_gae(rewards, values, bootstrap, gamma, lam):
    """Equation 16 by its definition: a double sum over TD errors."""
    after = [*values[1:], bootstrap]
    delta = [r + gamma * v1 - v for r, v, v1 in zip(rewards, values, after, strict=True)]
    n = len(rewards)
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


def loop_n_step(rewards, values, bootstrap, gamma, n):
    out, size = [], len(rewards)
    for t in range(size):
        last = min(t + n, size)
        tail = values[last] if last < size else bootstrap
        out.append(sum(gamma ** (k - t) * rewards[k] for k in range(t, last)) + gamma ** (last - t) * tail)
    return out


def loop_vtrace(rewards, values, log_ratios, bootstrap, gamma, rho_bar, c_bar):
    """Equation 1 of Espeholt et al. by its definition: sums of products of clipped ratios."""
    size, after = len(rewards), [*values[1:], bootstrap]
    ratio = [math.exp(x) for x in log_ratios]
    targets = []
    for s in range(size):
        total, product = values[s], 1.0
        for t in range(s, size):
            total += gamma ** (t - s) * product * min(rho_bar, ratio[t]) * (rewards[t] + gamma * after[t] - values[t])
            product *= min(c_bar, ratio[t])
        targets.append(total)
    return targets


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(0, 10))
def test_reverse_scan_is_the_recurrence(lengths, seed):
    """CHECKS 24: decays of exactly 0 and 1 among others, no row leaks into another."""
    increment, decay, num_actions, _ = draw(lengths, seed)
    decay[::3], decay[1::3] = 1.0, 0.0
    decay[row_ends(num_actions)] = 0.0
    expected, x = [], 0.0
    for a, d in zip(reversed(increment.tolist()), reversed(decay.tolist()), strict=True):
        x = a + d * x
        expected.append(x)
    actual = reverse_scan(increment, decay, max_length=max(lengths))
    assert_close(actual, torch.tensor(expected[::-1], dtype=torch.float64), **TOLERANCE)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.integers(1, 60))
def test_windowed_scan_sums_exactly_the_window(size, window):
    increment, decay, _, _ = draw([size])
    a, d = increment.tolist(), decay.tolist()
    expected = []
    for t in range(size):
        total, product = 0.0, 1.0
        for k in range(t, min(t + window, size)):
            total, product = total + product * a[k], product * d[k]
        expected.append(total)
    actual = windowed_scan(increment, decay, window=window)
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), **TOLERANCE)


def test_reverse_scan_of_ones_counts_exactly():
    """With decay 1.0 over 100 000 actions sums of whole numbers are exact in float32."""
    ones = torch.ones(100_000)
    actual = reverse_scan(ones, ones, max_length=100_000)
    assert torch.equal(actual, torch.arange(100_000, 0, -1).float())


@pytest.mark.parametrize("lengths", [[5, 1, 4], [1], [1, 1, 1], [9]])
def test_reverse_scan_has_the_gradient_of_finite_differences(lengths):
    """CHECKS 24: in increments and decays, at zero decays too, first and second derivative."""
    increment, decay, num_actions, _ = draw(lengths)
    decay[row_ends(num_actions)] = 0.0
    inputs = increment.requires_grad_(), decay.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, d: reverse_scan(a, d, max_length=sum(lengths)), inputs)
    assert torch.autograd.gradgradcheck(lambda a, d: reverse_scan(a, d, max_length=sum(lengths)), inputs)
    assert torch.autograd.gradcheck(lambda a, d: windowed_scan(a, d, window=3), inputs)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(0, 10))
def test_the_gradient_of_reverse_scan_is_the_recurrence_from_the_other_end(lengths, seed):
    increment, decay, num_actions, _ = draw(lengths, seed)
    decay[row_ends(num_actions)] = 0.0
    weights = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    increment.requires_grad_()
    (reverse_scan(increment, decay, max_length=max(lengths)) * weights).sum().backward()
    expected, flow = [], 0.0
    for weight, before in zip(weights.tolist(), [0.0, *decay.tolist()], strict=False):
        flow = weight + before * flow
        expected.append(flow)
    assert_close(increment.grad, torch.tensor(expected, dtype=torch.float64), **TOLERANCE)


def test_reverse_scan_leaves_its_inputs_alone_and_owns_its_result():
    """Its buffers are shared among doublings, never with the caller."""
    increment, decay, *_ = draw([33])
    before = increment.clone(), decay.clone()
    x = reverse_scan(increment, decay, max_length=33)
    assert torch.equal(increment, before[0])
    assert torch.equal(decay, before[1])
    assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_reverse_scan_of_no_action_is_empty():
    empty = torch.zeros(0, requires_grad=True)
    x = reverse_scan(empty, torch.zeros(0), max_length=1)
    x.sum().backward()
    assert x.shape == empty.grad.shape == (0,)


def test_rows_are_where_num_actions_says():
    num_actions, x = torch.tensor([3, 1, 2]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert row_starts(num_actions).tolist() == [0, 3, 4]
    assert row_ends(num_actions).tolist() == [2, 3, 5]
    assert row_ids(num_actions).tolist() == [0, 0, 0, 1, 2, 2]
    assert row_sum(x, num_actions).tolist() == [6.0, 4.0, 11.0]


@settings(deadline=None, max_examples=40)
@given(LENGTHS, FRACTION, FRACTION, st.integers(0, 10))
def test_gae_and_returns_are_their_definitions(lengths, gamma, lam, seed):
    """CHECKS 24: gae, lambda returns and discounted returns against sums by definition, terminated and cut rows."""
    rewards, values, num_actions, bootstrap = draw(lengths, seed)
    expected = by_row(lambda r, v, b: loop_gae(r, v, b, gamma, lam), num_actions, bootstrap, rewards, values)
    actual = gae(rewards, values, num_actions, bootstrap, gamma=gamma, lam=lam)
    assert_close(actual, expected, **TOLERANCE)
    actual = lambda_returns(rewards, values, num_actions, bootstrap, gamma=gamma, lam=lam)
    assert_close(actual, expected + values, **TOLERANCE)
    endless = by_row(lambda r, v, b: loop_n_step(r, v, b, gamma, len(r)), num_actions, bootstrap, rewards, values)
    assert_close(discounted_returns(rewards, num_actions, bootstrap, gamma=gamma), endless, **TOLERANCE)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, FRACTION, st.integers(1, 50))
def test_n_step_returns_are_their_definition(lengths, gamma, n):
    """CHECKS 24: n within, at and beyond the rows' ends."""
    rewards, values, num_actions, bootstrap = draw(lengths)
    expected = by_row(lambda r, v, b: loop_n_step(r, v, b, gamma, n), num_actions, bootstrap, rewards, values)
    actual = n_step_returns(rewards, values, num_actions, bootstrap, gamma=gamma, n=n)
    assert_close(actual, expected, **TOLERANCE)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, FRACTION, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.7, 1.0]))
def test_vtrace_is_its_definition(lengths, gamma, rho_bar, c_bar):
    """CHECKS 24."""
    rewards, values, num_actions, bootstrap = draw(lengths)
    log_ratios = torch.randn(values.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    given_bars = {"gamma": gamma, "rho_bar": rho_bar, "c_bar": c_bar}
    targets, advantages = vtrace(rewards, values, log_ratios, num_actions, bootstrap, **given_bars)

    def loop(r, v, x, b):
        return loop_vtrace(r, v, x, b, gamma, rho_bar, c_bar)

    expected = by_row(loop, num_actions, bootstrap, rewards, values, log_ratios)
    assert_close(targets, expected, **TOLERANCE)
    ratio = log_ratios.exp().clamp(max=rho_bar)
    following = by_row(lambda v, b: [*v[1:], b], num_actions, bootstrap, expected)
    assert_close(advantages, ratio * (rewards + gamma * following - values), **TOLERANCE)


def test_gae_steps_from_action_to_action_across_turns():
    """CHECKS 10: tokens of tools between two turns are no steps, so gaps in positions change no advantage.

    Reference: the row with its gaps, stepping over every slot that is no action.
    """
    gamma, lam = 0.9, 0.8
    is_action = [1, 1, 0, 0, 0, 1, 0, 1]
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 8, generator=generator, dtype=torch.float64).tolist()
    bootstrap, next_value, advantage = 0.7, 0.7, 0.0
    expected = []
    for t in reversed(range(8)):
        if is_action[t]:
            advantage = rewards[t] + gamma * next_value - values[t] + gamma * lam * advantage
            next_value = values[t]
            expected.append(advantage)
    mask = torch.tensor([is_action])
    packed_rewards, num_actions = pack(torch.tensor([rewards], dtype=torch.float64), mask)
    packed_values, _ = pack(torch.tensor([values], dtype=torch.float64), mask)
    tail = torch.tensor([bootstrap], dtype=torch.float64)
    actual = gae(packed_rewards, packed_values, num_actions, tail, gamma=gamma, lam=lam)
    assert_close(actual, torch.tensor(expected[::-1], dtype=torch.float64), **TOLERANCE)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padded_slots_change_no_estimate(poison):
    """CHECKS 7: what stands at padded slots of [B, T] never reaches an estimate."""
    rewards, values, num_actions, bootstrap = draw([3, 1, 4])
    expected = gae(rewards, values, num_actions, bootstrap, gamma=0.9, lam=0.8)
    padded = [unpack(x, num_actions, fill=poison) for x in (rewards, values)]
    assert padded[0][0].shape == (3, 4)
    (packed_rewards, counts), (packed_values, _) = (pack(x, mask) for x, mask in padded)
    actual = gae(packed_rewards, packed_values, counts, bootstrap, gamma=0.9, lam=0.8)
    assert torch.equal(actual, expected)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(0, 10))
def test_a_row_is_estimated_alike_whatever_it_is_packed_with(lengths, seed):
    """Bit for bit, in float32: rows before, after and longer change nothing."""
    drawn = draw(lengths, seed)
    rewards, values, num_actions, bootstrap = (x.float() if x.is_floating_point() else x for x in drawn)
    together = gae(rewards, values, num_actions, bootstrap, gamma=0.99, lam=0.95).split(lengths)
    for row, (r, v) in enumerate(zip(rewards.split(lengths), values.split(lengths), strict=True)):
        alone = gae(r, v, num_actions[row : row + 1], bootstrap[row : row + 1], gamma=0.99, lam=0.95)
        assert torch.equal(alone, together[row])


def test_finite_numbers_whose_sum_overflows_are_accepted():
    """The quick look at the sum must not refuse what is finite value by value."""
    huge, num_actions, zero = torch.full((4,), 2e38), torch.tensor([2, 2]), torch.zeros(2)
    assert torch.equal(gae(huge, torch.zeros(4), num_actions, zero, gamma=0.5, lam=0.0), huge)


def test_truncation_bootstraps_and_termination_does_not():
    """CHECKS 32: iterated targets of an endless +1 stream, seen in pieces of 16, reach 1/(1 - gamma) only when cut."""
    gamma, length = 0.9, 16
    rewards, num_actions = torch.ones(length, dtype=torch.float64), torch.tensor([length])
    value = torch.zeros(1, dtype=torch.float64)
    for _ in range(200):
        targets = lambda_returns(rewards, value.expand(length), num_actions, value, gamma=gamma, lam=0.95)
        value = targets.mean().view(1)
    assert abs(value.item() - 1 / (1 - gamma)) < 1e-6
    ended = discounted_returns(rewards, num_actions, torch.zeros(1, dtype=torch.float64), gamma=gamma)
    assert_close(ended[0].item(), (1 - gamma**length) / (1 - gamma), rtol=0, atol=1e-12)
    assert_close(ended[-1].item(), 1.0)


def test_expected_gae_is_the_exact_advantage():
    """CHECKS 24: with exact values, GAE averaged over the sequences through (s, a) is A(s, a), whatever lam."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(num_prefixes(3, horizon=3), 3, generator=generator, dtype=torch.float64)
    tree = enumerate_sequences(tabular_logits(logits), horizon=3, end=2)
    rewards = action_rewards(tree, lambda prefix, action: float((action + 1) * (len(prefix) + 2) % 5))
    exact = solve(tree, rewards, gamma=0.9)
    bootstrap = torch.zeros(len(tree.num_actions), dtype=torch.float64)
    for lam in (0.0, 0.7, 1.0):
        estimate = gae(tree.pack(rewards), tree.pack(exact.values), tree.num_actions, bootstrap, gamma=0.9, lam=lam)
        index = (tree.states, tree.actions)
        total = torch.zeros_like(rewards).index_put(index, tree.weights * estimate, accumulate=True)
        reach = torch.zeros_like(rewards).index_put(index, tree.weights, accumulate=True)
        assert_close(total / reach, exact.advantages, **TOLERANCE)


def test_estimators_keep_float64_and_lift_half_precision_to_float32():
    rewards, values, num_actions, bootstrap = draw([3, 2])
    assert gae(rewards, values, num_actions, bootstrap, gamma=1.0, lam=1.0).dtype == torch.float64
    half = [x.bfloat16() for x in (rewards, values, bootstrap)]
    actual = gae(half[0], half[1], num_actions, half[2], gamma=0.99, lam=0.95)
    assert actual.dtype == torch.float32
    expected = gae(half[0].double(), half[1].double(), num_actions, half[2].double(), gamma=0.99, lam=0.95)
    assert_close(actual.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.tensor([0.0, 1.0, float("nan"), 0.0])}, r"rewards holds nan in row 1"),
        ({"values": torch.tensor([0.0, 1.0, 0.0, float("inf")])}, r"values holds inf in row 1"),
        ({"bootstrap": torch.tensor([0.0, float("-inf")])}, r"bootstrap holds -inf in row 1"),
        ({"values": torch.zeros(3)}, r"values has shape \(3,\).*\(4,\)"),
        ({"bootstrap": torch.zeros(1)}, r"bootstrap has shape \(1,\).*\(2,\)"),
        ({"num_actions": torch.tensor([4, 0])}, r"row 1 has no action"),
        ({"num_actions": torch.zeros(0, dtype=torch.int64)}, r"no rows"),
    ],
)
def test_contradictory_input_is_refused_by_name_and_row(change, message):
    """CHECKS 8: an empty row or a non-finite number is an error that names it, never a NaN."""
    good = {
        "rewards": torch.zeros(4),
        "values": torch.zeros(4),
        "num_actions": torch.tensor([2, 2]),
        "bootstrap": torch.zeros(2),
    }
    with pytest.raises(RecordError, match=message):
        gae(**(good | change), gamma=1.0, lam=1.0)


def test_n_below_one_is_refused():
    with pytest.raises(RecordError, match="n = 0"):
        n_step_returns(torch.zeros(1), torch.zeros(1), torch.tensor([1]), torch.zeros(1), gamma=1.0, n=0)
