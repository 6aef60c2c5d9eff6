"""Sampling by the Gumbel maximum over counter-based noise: the same seed gives the same token in any batch shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 256
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed integer
_MIX_A = -4658895280553007687
_MIX_B = -7723592293110705685


def row_keys(seed: int, prompt_ids: Tensor, samples: Tensor) -> Tensor:
    """One 64-bit key [B] a row from the run's seed, the prompt's id and the sample's index."""
    return _mix(_mix(_mix(torch.full_like(prompt_ids, _signed(seed))) ^ prompt_ids) ^ samples)


def sample_tokens(logits: Tensor, keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row: (tokens [B], log-probabilities [B]) from logits [B, V] of the distribution to sample.

    positions [B] count each row's actions so far, for rows may stand at different places.
    Exact and two-level: a block of the vocabulary by its mass, then a token within the block, each by the Gumbel
    maximum over noise that only (key, position, index) decide.
    Source: Maddison, Tarlow & Minka 2014, arXiv:1411.0030; splitmix64 of Steele, Lea & Flood 2014.
    """
    rows, vocabulary = logits.shape
    fill = -vocabulary % _BLOCK
    blocks = (F.pad(logits, (0, fill), value=float("-inf")) if fill else logits).view(rows, -1, _BLOCK)
    mass = blocks.logsumexp(2)
    position_keys = _mix(keys + (positions + 1) * _GOLDEN)
    block = (mass + gumbel(position_keys, mass.shape[1], stream=0)).argmax(1)
    within = blocks[torch.arange(rows, device=logits.device), block]
    tokens = block * _BLOCK + (within + gumbel(position_keys, _BLOCK, stream=1)).argmax(1)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - mass.logsumexp(1)
    return tokens, logprobs


def gumbel(keys: Tensor, count: int, *, stream: int) -> Tensor:
    """Standard Gumbel noise [B, count] in float32 for keys [B]; streams are independent."""
    counters = torch.arange(stream << 32, (stream << 32) + count, device=keys.device)
    bits = _mix(keys[:, None] + (counters + 1)[None] * _GOLDEN)
    uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-53)
    return uniform.log_().neg_().log_().neg_().float()


def _mix(bits: Tensor) -> Tensor:
    """The splitmix64 finaliser; int64 arithmetic wraps, and shifts are made logical by masking the sign's copies."""
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * _MIX_A
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * _MIX_B
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
