"""Attention over packed rows: each token sees its own row and no other, and costs no more than that.

All rows of a forward lie end to end in one row [1, N]; rows that share a prompt share one copy of it. A `Block` is a
range of queries and a range of keys. Each token is a query of one block of its neighbourhood and, where its prompt lies
elsewhere, of a second one over that prompt; the two softmaxes are merged by their normalisers. The backward pass of a
block needs the merged output and normaliser only, so nothing of the size of queries times keys is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from upslope.errors import ModelError

NAME = "upslope"
_NEIGHBOURHOOD = 128  # tokens; shorter runs share one block under a mask, which costs less than a call each
_UNUSED = {"is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict"}

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens [start, stop) that follow each other: a prompt or a whole row, or a tail that continues `prompt`."""

    start: int
    stop: int
    prompt: Run | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that see all keys, the causal ones among them, or those that an additive mask leaves."""

    queries: slice
    keys: slice
    causal: bool = False
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """own: each token once, with its neighbourhood; prompts: tails over prompts outside their neighbourhood.

    longest: tokens of the longest row, which no sliding window may cut.
    """

    own: tuple[Block, ...]
    prompts: tuple[Block, ...]
    longest: int


def blocks(runs: Sequence[Run], *, device: torch.device) -> Blocks:
    """The blocks of consecutive runs, which together cover the packed row but for what fills up its end."""
    own: list[Block] = []
    prompts: list[Block] = []
    for near in _neighbourhoods(runs):
        own.append(_own_block(near, device))
        for prompt, tails in groupby(near, key=lambda run: run.prompt):
            if prompt is None or prompt.start >= near[0].start:
                continue
            members = list(tails)
            first, keys = members[0].start, slice(prompt.start, prompt.stop)
            if prompts and prompts[-1].keys == keys:
                first = prompts.pop().queries.start
            prompts.append(Block(slice(first, members[-1].stop), keys))
    longest = max(run.stop - run.start + (run.prompt.stop - run.prompt.start if run.prompt else 0) for run in runs)
    return Blocks(tuple(own), tuple(prompts), longest)


def _neighbourhoods(runs: Sequence[Run]) -> Iterator[list[Run]]:
    near: list[Run] = []
    for run in runs:
        if near and run.stop - near[0].start > _NEIGHBOURHOOD:
            yield near
            near = []
        near.append(run)
    yield near


def _own_block(near: Sequence[Run], device: torch.device) -> Block:
    reach = slice(near[0].start, near[-1].stop)
    if len(near) == 1:
        return Block(reach, reach, causal=True)
    lengths = torch.tensor([run.stop - run.start for run in near])
    index = {run: number for number, run in enumerate(near)}
    own = torch.arange(len(near)).repeat_interleave(lengths)
    prompt = torch.tensor([index.get(run.prompt or run, -1) for run in near]).repeat_interleave(lengths)
    seen = ((own == own[:, None]) | (own == prompt[:, None])).tril()
    mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[None, None]
    return Block(reach, reach, mask=mask.to(device))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: Blocks | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: packed rows where `blocks` are given, else Transformers' own attention.

    query [1, heads, N, D], key and value [1, key-value heads, N, D]; returns [1, N, heads, D].

    Raises: ModelError for what packed rows do not know: dropout, soft caps, sinks, or a window within a row.
    """
    if blocks is None:
        settings |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        own: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return own
    unknown = [name for name, setting in settings.items() if setting is not None and name not in _UNUSED]
    if unknown or dropout or (sliding_window is not None and sliding_window < blocks.longest):
        what = ", ".join(unknown) or "dropout, and no window within a row"
        raise ModelError(f"attention over packed rows knows no {what}")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    packed: Tensor = _Packed.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return packed, None


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, blocks, scale):  # type: ignore[no-untyped-def]
        result = query.new_zeros(1, query.shape[2], query.shape[1], query.shape[3])
        out = result.transpose(1, 2)
        norm = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for block in blocks.own:
            found, log_norm = _attend(query, key, value, block, scale)
            out[:, :, block.queries], norm[:, :, block.queries] = found, log_norm
        for block in blocks.prompts:
            found, log_norm = _attend(query, key, value, block, scale)
            merged = torch.logaddexp(norm[:, :, block.queries], log_norm)
            share = (log_norm - merged).exp_()[..., None].to(out.dtype)
            out[:, :, block.queries].lerp_(found, share)
            norm[:, :, block.queries] = merged
        ctx.save_for_backward(query, key, value, result, norm)
        ctx.blocks, ctx.scale = blocks, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, result, norm = ctx.saved_tensors
        grad, out = grad.transpose(1, 2), result.transpose(1, 2)
        grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for block in (*ctx.blocks.own, *ctx.blocks.prompts):
            q, k = block.queries, block.keys
            inputs = (grad[:, :, q], query[:, :, q], key[:, :, k], value[:, :, k], out[:, :, q], norm[:, :, q])
            parts = _flash_backward(*inputs, 0.0, block.causal, attn_mask=_mask(block, query), scale=ctx.scale)
            for whole, part, where in zip(grads, parts, (q, k, k), strict=True):
                whole[:, :, where] += part
        return *grads, None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> tuple[Tensor, Tensor]:
    """The block's output [1, heads, q, D] and log-normaliser [1, heads, q]."""
    query, key, value = query[:, :, block.queries], key[:, :, block.keys], value[:, :, block.keys]
    out, norm = _flash(query, key, value, 0.0, block.causal, attn_mask=_mask(block, query), scale=scale)
    return out, norm


def _mask(block: Block, query: Tensor) -> Tensor | None:
    return None if block.mask is None else block.mask.to(query.dtype)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
