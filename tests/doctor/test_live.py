"""Live bytes against sizes that follow from shapes."""

import torch

from upslope.doctor.live import LiveBytes

KIB = 1024


def test_new_tensors_count_until_they_are_dropped_and_views_once():
    given = torch.ones(256)  # made before: not counted
    with LiveBytes() as live:
        doubled = given * 2
        assert live.now == KIB
        halves = doubled.view(2, 128)[1], given[:5]
        assert live.now == KIB
        summed = doubled + doubled
        assert live.now == 2 * KIB
        del summed
        assert live.now == KIB
        doubled.mul_(2)
        del doubled
        assert live.now == KIB  # the view holds its storage
        del halves
    assert (live.now, live.peak) == (0, 2 * KIB)


def test_what_the_backward_pass_saves_and_makes_is_counted():
    """exp keeps its output [256] for the gradient; the backward pass makes the gradients of exp's output and input."""
    given = torch.zeros(256, requires_grad=True)
    given.grad = torch.zeros(256)
    with LiveBytes() as live:
        total = given.exp().sum()
        assert live.now == KIB + 4
        total.backward()
        del total
    assert live.now == 0
    assert live.peak <= 3 * KIB + 8
    assert live.peak >= 2 * KIB
    assert torch.equal(given.grad, torch.ones(256))


def test_an_operation_of_several_outputs_counts_each():
    with LiveBytes() as live:
        values, indices = torch.ones(8, 4).max(1)
        assert live.now == 8 * 4 + 8 * 8
        assert (len(values), len(indices)) == (8, 8)
