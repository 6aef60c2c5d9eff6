"""The forward of a decoder-only model over a key-value cache in pages: whole prompts, then a token a row a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.engines.architecture import Architecture, Block, weights_of
from upslope.engines.pages import PageCache
from upslope.kernels.attention import PAGE, LayerCache, Places, gather_pages, make_attend, rotate, split_heads
from upslope.kernels.linear import Linear, make_linear


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt to compute: its tokens, its pages in order, and how many of its pages are in the cache already."""

    tokens: Sequence[int]
    pages: Sequence[int]
    cached: int

    @property
    def start(self) -> int:
        """The position of the first token to compute."""
        return self.cached * PAGE


@dataclass(frozen=True, slots=True)
class _Layer:
    block: Block
    qkv: Linear
    out: Linear
    up: Linear
    down: Linear


Rotation = tuple[Tensor, Tensor] | None
Attention = Callable[[int, Tensor], Tensor]  # (layer, qkv [n, features]) -> [n, query heads * dim]


class Decoder:
    """Logits of next tokens by the parts of a model, with linear layers of the chosen kernel.

    `load` takes the model's weights as they are and has to follow every change of them; norms and embeddings are read
    where they lie. What flows between the layers is in the embedding's dtype, whatever the linear layers keep their
    weights in.
    """

    def __init__(self, architecture: Architecture, kernel: str, *, dtype: torch.dtype | None = None) -> None:
        self.architecture, self.kernel, self._dtype = architecture, kernel, dtype
        self._attend = make_attend(kernel)
        self._angles: Rotation = None
        self.rest()

    def rest(self) -> None:
        """Forget the linear layers' copies of the weights, until they are loaded again."""
        kernel, dtype = self.kernel, self._dtype
        self._layers = [
            _Layer(block, *(make_linear(kernel, dtype=dtype) for _ in range(4))) for block in self.architecture.blocks
        ]
        self._head = make_linear(kernel, dtype=dtype)

    def load(self) -> None:
        """Take the weights as they are now."""
        for layer in self._layers:
            block = layer.block
            _load(layer.qkv, block.qkv)
            _load(layer.out, (block.out,))
            _load(layer.up, block.up)
            _load(layer.down, (block.down,))
        _load(self._head, (self.architecture.head,))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the linear layers' own copies of the weights."""
        layers = [linear for layer in self._layers for linear in (layer.qkv, layer.out, layer.up, layer.down)]
        return sum(linear.nbytes for linear in (*layers, self._head))

    def prefill(self, cache: PageCache, prompts: Sequence[Prefill]) -> Tensor:
        """Compute prompts into their pages; logits [n, V] after the last token of each."""
        device = self.architecture.embedding.weight.device
        tokens = torch.tensor([token for prompt in prompts for token in prompt.tokens[prompt.start :]], device=device)
        lengths = [len(prompt.tokens) - prompt.start for prompt in prompts]
        positions = torch.cat(
            [torch.arange(p.start, p.start + n, device=device) for p, n in zip(prompts, lengths, strict=True)]
        )
        rotation = self._rotation(positions)
        alike = [list(group) for _, group in groupby(prompts, key=lambda p: (len(p.tokens), p.cached))]
        written = [_Written.of(group, device) for group in alike]
        sizes = [len(group) * (len(group[0].tokens) - group[0].start) for group in alike]

        def attend(index: int, qkv: Tensor) -> Tensor:
            query, key, value = split_heads(qkv, self.architecture.heads)
            if rotation:
                query, key = rotate(query, *rotation), rotate(key, *rotation)
            parts = zip(written, *(x.split(sizes) for x in (query, key, value)), strict=True)
            return torch.cat([self._attend_prompts(cache.layer(index), index, *part) for part in parts])

        hidden = self._trunk(tokens, positions, attend)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        return self._head(self.architecture.norm(hidden[last]))

    def step(self, cache: PageCache, tokens: Tensor, places: Places) -> Tensor:
        """Logits [B, V] after one more token [B] a row, at its place."""
        rotation, heads = self._rotation(places.positions), self.architecture.heads

        def attend(index: int, qkv: Tensor) -> Tensor:
            return self._attend(qkv, rotation, cache.layer(index), places, heads, self._layers[index].block.window)

        return self._head(self.architecture.norm(self._trunk(tokens, places.positions, attend)))

    def _trunk(self, tokens: Tensor, positions: Tensor, attend: Attention) -> Tensor:
        """Hidden states [n, H] before the last norm."""
        parts = self.architecture
        x = F.embedding(tokens, parts.embedding.weight)
        if parts.position_embedding is not None:
            x = x + F.embedding(positions, parts.position_embedding.weight)
        for index, layer in enumerate(self._layers):
            x = x + layer.out(attend(index, self._project(layer, x)))
            x = x + layer.down(self._gated(layer.up(layer.block.mlp_norm(x)), len(layer.block.up)))
        return x

    def _project(self, layer: _Layer, x: Tensor) -> Tensor:
        """Queries, keys and values [n, features] of hidden states."""
        qkv, block, heads = layer.qkv(layer.block.attention_norm(x)), layer.block, self.architecture.heads
        if block.query_norm is None or block.key_norm is None:
            return qkv
        query, key, value = split_heads(qkv, heads)
        return torch.cat((block.query_norm(query), block.key_norm(key), value), 1).flatten(1)

    def _gated(self, x: Tensor, parts: int) -> Tensor:
        if parts == 1:
            return self.architecture.activation(x)
        gate, up = x.chunk(2, 1)
        return self.architecture.activation(gate) * up

    def _attend_prompts(
        self, cache: LayerCache, index: int, written: _Written, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Causal attention [n, query heads * dim] of prompts alike, whose new keys and values enter their pages."""
        heads, block = self.architecture.heads, self._layers[index].block
        query, key, value = (x.unflatten(0, (len(written.pages), -1)) for x in (query, key, value))
        padding = (0, 0, 0, 0, 0, written.pages.shape[1] * PAGE - key.shape[1])
        paged = F.pad(torch.stack((key, value)), padding).unflatten(2, (-1, PAGE))
        cache.keys[written.pages] = paged[0].permute(0, 1, 3, 4, 2)
        cache.values[written.pages, :, :, : heads.dim] = paged[1].transpose(2, 3)
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
        if written.before.shape[1]:
            old_keys, old_values = gather_pages(cache, written.before, heads)
            keys, values = torch.cat((old_keys, keys), 2), torch.cat((old_values, values), 2)
        mask = _causal(query.shape[1], keys.shape[2], block.window, query.device)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=heads.scale,
            enable_gqa=True,
        )
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)

    def _rotation(self, positions: Tensor) -> Rotation:
        """cos and sin [n, rotary] of positions [n], from the model's own table, which is computed once."""
        parts = self.architecture
        if parts.rotary is None:
            return None
        length = int(positions.max()) + 1
        if self._angles is None or len(self._angles[0]) < length:
            weight = parts.embedding.weight
            every = torch.arange(max(1024, 2 * length), device=weight.device)[None]
            cos, sin = parts.rotary(weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32)), every)
            self._angles = cos[0].to(weight.dtype).contiguous(), sin[0].to(weight.dtype).contiguous()
        cos, sin = self._angles
        return cos[positions], sin[positions]


@dataclass(frozen=True, slots=True)
class _Written:
    """Pages [prompts, n] that the new tokens of prompts alike go to, and the pages before them."""

    pages: Tensor
    before: Tensor

    @staticmethod
    def of(prompts: Sequence[Prefill], device: torch.device) -> _Written:
        pages = torch.tensor([prompt.pages for prompt in prompts], device=device)
        return _Written(pages[:, prompts[0].cached :], pages[:, : prompts[0].cached])


def _causal(new: int, total: int, window: int | None, device: torch.device) -> Tensor | None:
    """Bool [new, total], what each of the last `new` of `total` tokens sees; None where it is the plain triangle."""
    if new == total and (window is None or total <= window):
        return None
    query, key = torch.arange(total - new, total, device=device)[:, None], torch.arange(total, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def _load(linear: Linear, modules: Sequence[nn.Module]) -> None:
    pairs: list[Any] = [weights_of(module) for module in modules]
    linear.load([weight for weight, _ in pairs], [bias for _, bias in pairs])
