"""Attention of one new token a row over a key-value cache in pages, which rows may share."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.kernels.build import FLOATS, native, pointer, sizes

PAGE = 16


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of attention: query heads, key-value heads, their dimension, and the factor before the softmax."""

    queries: int
    keys: int
    dim: int
    scale: float

    @property
    def width(self) -> int:
        """The dimension as values are kept: whole registers of the compiled kernel."""
        return -(-self.dim // PAGE) * PAGE

    @property
    def features(self) -> int:
        """Queries, keys and values of one token, end to end."""
        return (self.queries + 2 * self.keys) * self.dim


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's pages: keys [pages, kv_heads, dim, PAGE] and values [pages, kv_heads, PAGE, width]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """Where each row stands: its pages [B, n] in order, and the position [B] of its new token; both int64."""

    pages: Tensor
    positions: Tensor


class Attend(Protocol):
    """Enters the new tokens' keys and values into the cache and attends to all that each row then has.

    qkv [B, features] is overwritten; rotation is (cos, sin), each [B, rotary], or None. At most `window` tokens are
    seen, all where None. Returns [B, query heads * dim].
    """

    def __call__(
        self,
        qkv: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        cache: LayerCache,
        places: Places,
        heads: Heads,
        window: int | None,
    ) -> Tensor: ...


def make_attend(kernel: str) -> Attend:
    """The compiled attention for the compiled linear kernel, PyTorch's for every other."""
    return partial(attend_native, native()) if kernel == "native" else attend_torch


def attend_native(
    library: ctypes.CDLL,
    qkv: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    cache: LayerCache,
    places: Places,
    heads: Heads,
    window: int | None,
) -> Tensor:
    """Attend by a build of native.cpp, in float32 on a CPU."""
    assert qkv.shape[1] == heads.features
    out = torch.empty(len(qkv), heads.queries * heads.dim, **FLOATS)
    rotary = rotation[0].shape[1] if rotation else 0
    cos, sin = (pointer(part) for part in rotation) if rotation else (None, None)
    library.attend(
        pointer(qkv),
        cos,
        sin,
        *sizes(rotary),
        pointer(cache.keys),
        pointer(cache.values),
        pointer(places.pages),
        *sizes(places.pages.shape[1]),
        pointer(places.positions),
        pointer(out),
        *sizes(len(qkv), heads.queries, heads.keys, heads.dim, heads.width),
        ctypes.c_float(heads.scale),
        *sizes(window or 0),
    )
    return out


def attend_torch(
    qkv: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    cache: LayerCache,
    places: Places,
    heads: Heads,
    window: int | None,
) -> Tensor:
    """Attend by PyTorch, in any dtype on any device; every row's pages are gathered into one tensor first."""
    query, key, value = split_heads(qkv, heads)
    if rotation:
        query, key = rotate(query, *rotation), rotate(key, *rotation)
    page = places.pages.gather(1, places.positions[:, None] // PAGE)[:, 0]
    slot = places.positions % PAGE
    cache.keys[page, :, :, slot] = key
    cache.values[page, :, slot, : heads.dim] = value
    keys, values = gather_pages(cache, places.pages, heads)
    at = torch.arange(keys.shape[2], device=qkv.device)
    seen = at <= places.positions[:, None]
    if window:
        seen &= at > places.positions[:, None] - window
    unseen = ~seen[:, None, :, None]  # another row may have left a NaN there, which no weight of 0 would silence
    keys, values = keys.masked_fill_(unseen, 0.0), values.masked_fill(unseen, 0.0)
    attended = F.scaled_dot_product_attention(
        query[:, :, None], keys, values, attn_mask=seen[:, None, None], scale=heads.scale, enable_gqa=True
    )
    return attended.flatten(1)


def split_heads(qkv: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [n, query heads, dim], keys and values [n, kv heads, dim] of qkv [n, features]."""
    query, key, value = qkv.view(len(qkv), -1, heads.dim).split([heads.queries, heads.keys, heads.keys], 1)
    return query, key, value


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [n, heads, dim] with its first `rotary` features turned by cos, sin [n, rotary], halves against halves.

    Source: Su et al. 2021, arXiv:2104.09864, in the arrangement of GPT-NeoX and Llama.
    """
    rotary = cos.shape[1]
    turned, rest = x[..., :rotary], x[..., rotary:]
    half = torch.cat((-turned[..., rotary // 2 :], turned[..., : rotary // 2]), -1)
    return torch.cat((turned * cos[:, None] + half * sin[:, None], rest), -1)


def gather_pages(cache: LayerCache, pages: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Keys and values [B, kv heads, n * PAGE, dim] of pages [B, n], copied out of the cache."""
    keys = cache.keys[pages].permute(0, 2, 1, 4, 3).flatten(2, 3)
    values = cache.values[pages][..., : heads.dim].transpose(1, 2).flatten(2, 3)
    return keys, values
