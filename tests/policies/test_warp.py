"""Temperature, top-k and top-p as one function for engine and trainer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from upslope.policies.sampling import warp

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.5], [0.0, 0.0, 5.0, 4.0, 0.0]])


def support(logits):
    return [[i for i, x in enumerate(row) if x > float("-inf")] for row in logits.tolist()]


def test_nothing_is_cut_by_default(sampling):
    """CHECKS 18: without top-k and top-p every token stays possible, at its own logit."""
    wide = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    assert_close(warp(wide, sampling()), wide, rtol=0, atol=0)
    assert_close(warp(wide, sampling(0.5)), wide * 2)


def test_top_k_and_top_p_by_hand(sampling):
    assert support(warp(LOGITS, sampling(top_k=2))) == [[1, 2], [2, 3]]
    assert support(warp(LOGITS, sampling(top_k=50))) == [list(range(5))] * 2
    # softmax of the first row: 0.084, 0.620, 0.228, 0.011, 0.051 (rounded)
    assert support(warp(LOGITS[:1], sampling(top_p=0.61))) == [[1]]
    assert support(warp(LOGITS[:1], sampling(top_p=0.63))) == [[1, 2]]
    assert support(warp(LOGITS[:1], sampling(top_p=0.90))) == [[0, 1, 2]]
    assert support(warp(LOGITS[:1], sampling(top_p=1.0))) == [list(range(5))]
    # top-p acts on what top-k left, renormalised: 0.731 and 0.269
    assert support(warp(LOGITS[:1], sampling(top_k=2, top_p=0.73))) == [[1]]
    assert support(warp(LOGITS[:1], sampling(top_k=2, top_p=0.74))) == [[1, 2]]


def test_a_sampled_action_stays_possible(sampling):
    """An action that rounding moved outside the support keeps a finite log-probability."""
    kept = warp(LOGITS, sampling(top_k=1), actions=torch.tensor([3, 2]))
    assert support(kept) == [[1, 3], [2]]


def test_greedy_leaves_logits_as_they_are(sampling):
    assert_close(warp(LOGITS, sampling(0.0, top_k=1)), LOGITS)


def test_no_downcast_and_half_precision_is_promoted(sampling):
    """CHECKS 23: float32 at least, float64 where float64 is given."""
    assert warp(LOGITS.bfloat16(), sampling()).dtype == torch.float32
    assert warp(LOGITS.half(), sampling(0.7)).dtype == torch.float32
    assert warp(LOGITS.double(), sampling(0.7, 3, 0.9)).dtype == torch.float64


def test_cut_entries_pass_no_gradient(sampling):
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(warp(logits, sampling(0.5, top_k=2)).logsumexp(1).sum(), logits)
    expected = torch.zeros(2, 5)
    expected[0, [1, 2]] = 2 * torch.tensor([6.0, 4.0]).softmax(0)
    expected[1, [2, 3]] = 2 * torch.tensor([10.0, 8.0]).softmax(0)
    assert_close(gradient, expected)


@given(
    seed=st.integers(0, 1000),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.01, 1.0),
    temperature=st.floats(0.2, 3.0),
)
@settings(max_examples=100)
def test_support_is_the_smallest_likeliest_set_that_reaches_p(sampling, seed, top_k, top_p, temperature):
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (kept,) = support(warp(logits, sampling(temperature, top_k, top_p)))
    order = sorted(range(12), key=lambda i: -float(logits[0, i]))[: top_k or 12]
    mass = (logits[0] / temperature)[order].softmax(0)
    count = next((n for n in range(1, len(order) + 1) if float(mass[:n].sum()) >= (top_p or 1.0)), len(order))
    if top_p is not None and any(float(mass[:n].sum()) == pytest.approx(top_p, abs=1e-9) for n in range(13)):
        return
    assert sorted(kept) == sorted(order[:count] if top_p is not None else order)
