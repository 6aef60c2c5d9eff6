"""Which action weighs what, and that cutting a step into micro-batches changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import RecipeError
from upslope.losses import aggregation, clipped_surrogate, reinforce, sequence_surrogate, weighted_sum

LENGTHS = [3, 1, 5, 2]
OVER = ("tokens", "rows", "rows_token_mean", "constant")


def spell(over, lengths):
    """The documented aggregation as a nested loop: what one row and one action contribute."""
    number, total = len(lengths), sum(lengths)
    per_row = {
        "tokens": lambda n: [1 / total] * n,
        "rows": lambda n: [1 / number] * n,
        "rows_token_mean": lambda n: [1 / number / n] * n,
        "constant": lambda n: [1 / number / 8] * n,
    }[over]
    return [weight for n in lengths for weight in per_row(n)]


@pytest.mark.parametrize("over", OVER)
def test_each_token_weighs_what_is_documented(over):
    """CHECKS 28: the gradient of the loss in each action's term is its weight."""
    weights, denominator = aggregation(torch.tensor(LENGTHS), over=over, constant_length=8, dtype=torch.float64)
    terms = torch.zeros(sum(LENGTHS), dtype=torch.float64, requires_grad=True)
    weighted_sum(terms, weights=weights, denominator=denominator).backward()
    assert_close(terms.grad, torch.tensor(spell(over, LENGTHS), dtype=torch.float64), rtol=0, atol=1e-12)


def surrogates(logprobs, old_logprobs, advantages, lengths, **scale):
    clips = {"clip_low": 0.2, "clip_high": 0.2}
    kind = {"length_normalised": True, "token_level": False}
    return (
        reinforce(logprobs, advantages, **scale),
        clipped_surrogate(logprobs, old_logprobs, advantages, dual_clip=None, **clips, **scale),
        sequence_surrogate(logprobs, old_logprobs, advantages, lengths, **kind, **clips, **scale),
    )


def gradients(over, cut, *, mean_of_means=False):
    """For each surrogate, the gradient of four rows scored in pieces of the given numbers of rows."""
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    features = torch.randn(sum(LENGTHS), 4, generator=generator, dtype=torch.float64)
    old_logprobs, advantages = torch.randn(2, sum(LENGTHS), generator=generator, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS).split(cut)
    scales = [aggregation(piece, over=over, constant_length=8, dtype=torch.float64) for piece in lengths]
    whole = sum(denominator for _, denominator in scales)
    totals, start = [0.0, 0.0, 0.0], 0
    for piece, (weights, own) in zip(lengths, scales, strict=True):
        here = slice(start, start + int(piece.sum()))
        start = here.stop
        scale = {"weights": weights, "denominator": own * len(cut) if mean_of_means else whole}
        terms = surrogates(features[here] @ parameters, old_logprobs[here], advantages[here], piece, **scale)
        totals = [total + term for total, term in zip(totals, terms, strict=True)]
    return [torch.autograd.grad(total, parameters, retain_graph=True)[0] for total in totals]


@pytest.mark.parametrize("over", OVER)
def test_micro_batches_change_no_gradient(over):
    """CHECKS 29: (4), (2, 2) and (1, 2, 1) rows sum to one gradient; the mean of means is another."""
    whole = gradients(over, (4,))
    for cut in ((2, 2), (1, 2, 1)):
        for actual, expected in zip(gradients(over, cut), whole, strict=True):
            assert_close(actual, expected, rtol=0, atol=1e-12)
    if over == "tokens":
        wrong = gradients(over, (1, 2, 1), mean_of_means=True)
        assert all((a - b).norm() > 0.1 * b.norm() for a, b in zip(wrong, whole, strict=True))


@pytest.mark.parametrize("over", OVER)
def test_a_row_left_out_is_in_no_numerator_and_no_denominator(over):
    """CHECKS 9: excluding row 2 gives the loss of a batch that never held it."""
    terms = torch.arange(1.0, sum(LENGTHS) + 1, dtype=torch.float64)
    keep = torch.tensor([row != 2 for row, n in enumerate(LENGTHS) for _ in range(n)])
    lengths = [n for row, n in enumerate(LENGTHS) if row != 2]
    weights, denominator = aggregation(torch.tensor(lengths), over=over, constant_length=8, dtype=torch.float64)
    actual = weighted_sum(terms[keep], weights=weights, denominator=denominator)
    expected = sum(w * x for w, x in zip(spell(over, lengths), terms[keep].tolist(), strict=True))
    assert_close(actual.item(), expected, rtol=0, atol=1e-12)


def test_unknown_sums_are_refused():
    with pytest.raises(RecipeError, match=r"'mean'.*choose tokens"):
        aggregation(torch.tensor([1]), over="mean")
    with pytest.raises(RecipeError, match="constant_length None"):
        aggregation(torch.tensor([1]), over="constant")
    with pytest.raises(RecipeError, match="constant_length 0"):
        aggregation(torch.tensor([1]), over="constant", constant_length=0)
