"""Attention over pages against a loop over rows and heads in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from upslope.kernels.attention import PAGE, Heads, LayerCache, Places, make_attend

SHAPES = [
    Heads(queries=9, keys=3, dim=64, scale=0.125),
    Heads(queries=4, keys=4, dim=16, scale=0.25),
    Heads(queries=8, keys=1, dim=8, scale=1.0),
    Heads(queries=14, keys=2, dim=20, scale=0.3),
    Heads(queries=5, keys=1, dim=64, scale=0.125),
    Heads(queries=6, keys=1, dim=33, scale=0.2),
]


@pytest.fixture(params=["native", "torch"])
def attend(request):
    return make_attend(request.param)


def scene(heads, positions, *, seed=0):
    """A cache of random history for rows whose new token stands at `positions`, and the history itself."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(positions) // PAGE + 1
    pages = torch.randperm(len(positions) * longest, generator=generator).view(len(positions), longest)
    cache = LayerCache(
        torch.randn(pages.numel(), heads.keys, heads.dim, PAGE, generator=generator),
        torch.randn(pages.numel(), heads.keys, PAGE, heads.width, generator=generator),
    )
    qkv = torch.randn(len(positions), heads.features, generator=generator)
    return qkv, cache, Places(pages, torch.tensor(positions))


def angles(positions, rotary):
    inverse = 1.0 / 100.0 ** (torch.arange(0, rotary, 2) / rotary)
    turned = torch.tensor(positions)[:, None] * inverse
    return torch.cat((turned, turned), 1).cos(), torch.cat((turned, turned), 1).sin()


def turn(x, cos, sin):
    """One head's features, feature by feature."""
    half, out = len(cos) // 2, x.clone()
    for i in range(half):
        out[i] = x[i] * cos[i] - x[i + half] * sin[i]
        out[i + half] = x[i + half] * cos[i] + x[i] * sin[i]
    return out


def by_hand(qkv, rotation, cache, places, heads, window):
    """The definition, one row and one head at a time; reads the history token by token."""
    rows = []
    for row, (features, last) in enumerate(zip(qkv.double(), places.positions.tolist(), strict=True)):
        parts = features.view(-1, heads.dim)
        if rotation:
            turned = heads.queries + heads.keys
            cos, sin = rotation[0][row].double(), rotation[1][row].double()
            parts = torch.stack([turn(x, cos, sin) if i < turned else x for i, x in enumerate(parts)])
        for head in range(heads.queries):
            shared = head // (heads.queries // heads.keys)
            first = max(0, last + 1 - window) if window else 0
            keys, values = [], []
            for at in range(first, last):
                page, slot = int(places.pages[row, at // PAGE]), at % PAGE
                keys.append(cache.keys[page, shared, :, slot].double())
                values.append(cache.values[page, shared, slot, : heads.dim].double())
            keys.append(parts[heads.queries + shared])
            values.append(parts[heads.queries + heads.keys + shared])
            weights = (torch.stack(keys) @ parts[head] * heads.scale).softmax(0)
            rows.append(weights @ torch.stack(values))
    return torch.stack(rows).view(len(qkv), -1)


@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("rotary", [0, 1.0, 0.5])
def test_attention_is_its_definition(attend, heads, window, rotary):
    positions = [0, 3, PAGE - 1, PAGE, 3 * PAGE + 5]
    qkv, cache, places = scene(heads, positions)
    rotation = angles(positions, int(heads.dim * rotary) // 2 * 2) if rotary else None
    expected = by_hand(qkv.clone(), rotation, cache, places, heads, window)
    actual = attend(qkv, rotation, cache, places, heads, window)
    assert_close(actual.double(), expected, rtol=0, atol=5e-6)


def test_the_new_token_enters_the_cache_and_nothing_else_changes(attend):
    heads, positions = SHAPES[0], [2, PAGE + 1]
    qkv, cache, places = scene(heads, positions)
    before, given = LayerCache(cache.keys.clone(), cache.values.clone()), qkv.clone().view(2, -1, heads.dim)
    attend(qkv, None, cache, places, heads, None)
    for row, position in enumerate(positions):
        page, slot = int(places.pages[row, position // PAGE]), position % PAGE
        assert_close(cache.keys[page, :, :, slot], given[row, heads.queries : heads.queries + heads.keys])
        assert_close(cache.values[page, :, slot, : heads.dim], given[row, heads.queries + heads.keys :])
        cache.keys[page, :, :, slot] = before.keys[page, :, :, slot]
        cache.values[page, :, slot] = before.values[page, :, slot]
    assert torch.equal(cache.keys, before.keys)
    assert torch.equal(cache.values, before.values)


def test_scores_far_apart_neither_overflow_nor_vanish(attend):
    """One key takes all the weight at scores of +-1e4; the exponential is exact to rounding where weights are mixed."""
    heads = Heads(queries=1, keys=1, dim=16, scale=1.0)
    qkv, cache, places = scene(heads, [20])
    qkv[:, :16] *= 3e3
    expected = by_hand(qkv.clone(), None, cache, places, heads, None)
    assert_close(attend(qkv, None, cache, places, heads, None).double(), expected, rtol=0, atol=1e-5)


def test_a_row_that_is_not_finite_spoils_no_other(attend):
    heads, positions = SHAPES[0], [4, 17, 30]
    qkv, cache, places = scene(heads, positions)
    places.pages[0, 1:] = places.pages[1, 0]  # lists of pages are filled up with any page, the bad row's for one
    expected = by_hand(qkv.clone(), None, cache, places, heads, None)
    qkv[1] = math.nan
    actual = attend(qkv, None, cache, places, heads, None)
    assert actual[1].isnan().all()
    assert_close(actual[[0, 2]].double(), expected[[0, 2]], rtol=0, atol=5e-6)
