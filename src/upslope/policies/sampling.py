"""The distribution that is sampled from, as one function shared by engines and scoring so that both mean the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a row is sampled.

    temperature > 0 divides the logits; 0 is greedy decoding, for evaluation only. top_k and top_p, where given, cut the
    support and renormalise. A row ends at an end-of-sequence id, at a stop string, or after max_new_tokens.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int
    stop: tuple[str, ...]

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is taken."""
        return self.temperature == 0.0


def warp(logits: Tensor, sampling: Sampling, *, actions: Tensor | None = None) -> Tensor:
    """Logits [m, K] of the distribution sampled from, in float32 at least: temperature, then top-k, then top-p.

    Cut entries are -inf. actions [m], where given, always stay in the support: an action that was sampled is possible,
    even where rounding moved it across the border between sampling and scoring.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.greedy:
        return logits
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if sampling.top_k is None and sampling.top_p is None:
        return logits
    with torch.no_grad():
        removed = _removed(logits, sampling)
        if actions is not None:
            removed.scatter_(1, actions[:, None], False)
    return logits.masked_fill(removed, float("-inf"))


def _removed(logits: Tensor, sampling: Sampling) -> Tensor:
    """Bool [m, K]: entries outside the support. Top-p keeps the smallest set whose mass reaches p."""
    removed = torch.zeros_like(logits, dtype=torch.bool)
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        threshold = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        removed = logits < threshold
    if sampling.top_p is not None and sampling.top_p < 1.0:
        ordered, order = logits.masked_fill(removed, float("-inf")).sort(dim=1, descending=True)
        probabilities = ordered.softmax(1)
        beyond = probabilities.cumsum(1) - probabilities >= sampling.top_p
        removed = removed | torch.zeros_like(removed).scatter(1, order, beyond)
    return removed
