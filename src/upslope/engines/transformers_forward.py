"""Generation by Transformers' own forward and key-value cache, for architectures that the decoder does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.engines.rows import Row
from upslope.errors import ModelError
from upslope.policies.causal import CausalPolicy
from upslope.stopwatch import span


class TransformersForward:
    """Rows in progress over one padded cache; see rows.Forward. Rows enter only when all before them are finished."""

    def __init__(self, policy: CausalPolicy, *, max_rows: int) -> None:
        self._policy, self._max_rows = policy, max_rows
        self._cache: Any = None
        self._mask = self._lengths = torch.empty(0)

    def load(self) -> None:
        """The weights are the policy's own; only what older ones computed has to go."""
        self.drop()

    def start(self, _rows: Sequence[Row], *, max_new_tokens: int) -> None:  # noqa: ARG002
        """Make ready for new rows; the cache grows with them."""
        self.drop()

    def rest(self) -> None:
        """The weights are the policy's own; only the cache has to go."""
        self.drop()

    def drop(self) -> None:
        """Give the cache's memory back."""
        self._cache = None

    def memory(self, rows: Sequence[Row], *, max_new_tokens: int) -> tuple[int, int]:
        """Bytes of its own copies of the weights, which are none, and of a padded cache of max_rows rows."""
        config = self._policy.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = max((len(row.prompt.tokens) for row in rows), default=0) + max_new_tokens
        per_token = 2 * config.num_hidden_layers * heads * dim * self._policy.model.dtype.itemsize
        return 0, min(len(rows), self._max_rows) * width * per_token

    def admit(self, waiting: Sequence[Row]) -> tuple[int, Tensor | None]:
        """Take in the next max_rows rows when none is in progress: every distinct prompt is computed once."""
        if self._cache is not None:
            return 0, None
        with span("prefill"):
            rows = waiting[: self._max_rows]
            return len(rows), self._prefill(rows)

    def _prefill(self, rows: Sequence[Row]) -> Tensor:
        policy = self._policy
        prompts = {row.group: row.prompt.tokens for row in rows}
        order = {group: place for place, group in enumerate(prompts)}
        width = max(map(len, prompts.values()))
        ids = torch.full((len(prompts), width), policy.pad_id)
        mask = torch.zeros_like(ids)
        for place, tokens in enumerate(prompts.values()):
            ids[place, width - len(tokens) :] = torch.tensor(tokens)
            mask[place, width - len(tokens) :] = 1
        ids, mask = ids.to(policy.device), mask.to(policy.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = policy.run(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        self._cache = getattr(output, "past_key_values", None)
        if self._cache is None:
            raise ModelError(f"{type(policy.model).__name__} keeps no key-value cache, which sampling needs")
        expand = torch.tensor([order[row.group] for row in rows], device=policy.device)
        self._cache.batch_select_indices(expand)
        self._mask, self._lengths = mask[expand], mask.sum(1)[expand]
        logits: Tensor = output.logits[:, -1][expand]
        return logits

    def keep(self, alive: Sequence[int]) -> None:
        """Forget all rows but these; a row may be named several times, for beams."""
        if not alive:
            self.drop()
            return
        index = torch.tensor(alive, device=self._policy.device)
        self._cache.batch_select_indices(index)
        self._mask, self._lengths = self._mask[index], self._lengths[index]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] a row."""
        with span("decode"):
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
            output = self._policy.run(
                input_ids=tokens[:, None],
                attention_mask=self._mask,
                position_ids=self._lengths[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
            self._cache, self._lengths = output.past_key_values, self._lengths + 1
            logits: Tensor = output.logits[:, -1]
            return logits
