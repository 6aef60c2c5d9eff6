"""The two-level Gumbel sampler over a vocabulary of several blocks: exact, and decided by its key alone."""

import pytest
import torch
from torch.testing import assert_close

from upslope.engines.sampling import gumbel, row_keys, sample_tokens

V = 700  # three blocks of 256, the last one partly filled


def logits_of(seed=0):
    logits = 2.0 * torch.randn(V, generator=torch.Generator().manual_seed(seed))
    logits[300:310] += 5.0  # most of the mass within one block
    logits[[0, 257, 514]] += 5.0  # the n-th place of the n-th block, where noise used twice would show
    logits[5] = float("-inf")
    return logits


def keys(count, seed=0):
    return row_keys(seed, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def test_tokens_are_distributed_as_softmax():
    """Chi-square of 40,000 draws, each from its own key, against softmax over all three blocks."""
    count, expected = 40_000, logits_of().double().softmax(0)
    tokens, _ = sample_tokens(logits_of().expand(count, V), keys(count), torch.tensor([0]))
    observed = torch.bincount(tokens, minlength=V).double()
    assert observed[5] == 0
    for block in range(3):
        assert observed[256 * block : 256 * (block + 1)].sum() > 300
    common = expected * count >= 5
    cells = torch.cat([observed[common], observed[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]) * count
    statistic, degrees = float(((cells - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert degrees > 100
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5


def test_positions_of_a_row_are_independent():
    """Chi-square of independence between the tokens of successive positions of the same rows."""
    logits, count = torch.tensor([0.0, 0.5, 1.0, -0.5]), 20_000
    first, _ = sample_tokens(logits.expand(count, 4), keys(count), torch.tensor([0]))
    second, _ = sample_tokens(logits.expand(count, 4), keys(count), torch.tensor([1]))
    p = logits.double().softmax(0)
    wanted = count * p[:, None] * p[None]
    observed = torch.bincount(4 * first + second, minlength=16).view(4, 4).double()
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert statistic < 15 + 4 * 30**0.5


def test_logprob_is_exact():
    rows = torch.stack([logits_of(seed) for seed in range(50)])
    tokens, logprobs = sample_tokens(rows, keys(50), torch.tensor([3]))
    expected = rows.double().log_softmax(1).gather(1, tokens[:, None])[:, 0]
    assert_close(logprobs.double(), expected, rtol=0, atol=2e-6)


def test_a_draw_depends_on_its_key_and_position_alone():
    """CHECKS 39: the batch's shape and order change nothing."""
    rows = torch.stack([logits_of(seed) for seed in range(30)])
    tokens, logprobs = sample_tokens(rows, keys(30), torch.tensor([2]))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    shuffled, _ = sample_tokens(rows[order], keys(30)[order], torch.tensor([2]))
    assert_close(shuffled, tokens[order])
    single, single_logprob = sample_tokens(rows[7:8], keys(30)[7:8], torch.tensor([2]))
    assert (int(single), float(single_logprob)) == (int(tokens[7]), pytest.approx(float(logprobs[7]), abs=1e-6))
    elsewhere, _ = sample_tokens(rows, keys(30), torch.tensor([3]))
    assert (elsewhere != tokens).float().mean() > 0.3


def test_rounding_of_the_logits_flips_few_tokens():
    """Noise of 1e-6, as another batch shape brings, leaves all but a few of 20,000 tokens as they were."""
    rows = logits_of().expand(20_000, V)
    noise = 1e-6 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(3))
    tokens, _ = sample_tokens(rows, keys(20_000), torch.tensor([0]))
    moved, _ = sample_tokens(rows + noise, keys(20_000), torch.tensor([0]))
    assert int((tokens != moved).sum()) <= 3


def test_keys_differ_for_every_seed_prompt_and_sample():
    grid = [row_keys(s, torch.arange(-20, 60), torch.full((80,), n)) for s in (0, 1, 2**63, -5) for n in range(40)]
    assert torch.cat(grid).unique().numel() == 4 * 40 * 80


def test_gumbel_noise_has_its_moments_and_streams_are_independent():
    noise, other = gumbel(keys(400), 500, stream=0).double(), gumbel(keys(400), 500, stream=1).double()
    assert torch.isfinite(noise).all()
    for sample in (noise, other):
        assert float(sample.mean()) == pytest.approx(0.5772, abs=0.012)
        assert float(sample.var()) == pytest.approx(torch.pi**2 / 6, abs=0.04)
    correlation = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.01
