"""Generation by Transformers' own forward and key-value cache, for architectures that the decoder does not know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.engines.padded import PaddedForward
from upslope.engines.rows import Row
from upslope.errors import ModelError
from upslope.policies.causal import CausalPolicy
from upslope.records import Prompt
from upslope.stopwatch import span

_TRIED = (3, 7)  # tokens of the prompts that padding is tried out on
_TOLERANCE = 1e-3  # of the largest logit, in float32


class TransformersForward(PaddedForward[CausalPolicy]):
    """Decoders of Transformers; see PaddedForward.

    Prompts are padded on the left. A model that takes no position ids would count the padding in (Bart's decoder does):
    where a trial shows that, only prompts of one length are computed together, which need none.
    """

    def __init__(self, policy: CausalPolicy, *, max_rows: int, cache_bytes: int | None) -> None:
        super().__init__(policy, max_rows=max_rows, cache_bytes=cache_bytes)
        self._mask = self._lengths = torch.empty(0)
        self.pads = self._pads_rightly()

    def admit(self, waiting: Sequence[Row]) -> tuple[int, Tensor | None]:
        """Take in as many rows as there is room for, when none is in progress."""
        lengths = [len(row.prompt.tokens) for row in waiting]
        alike = next((i for i, length in enumerate(lengths) if length != lengths[0]), len(waiting))
        return super().admit(waiting if self.pads else waiting[:alike])

    @torch.inference_mode()
    def _pads_rightly(self) -> bool:
        """Whether a prompt that is padded to another's length has the logits that it has alone."""
        vocabulary = self._policy.model.get_input_embeddings().weight.shape[0]
        texts = [tuple(token % vocabulary for token in range(3, 3 + length)) for length in _TRIED]
        rows = [Row(Prompt(id=i, content="", tokens=text), group=i, sample=0) for i, text in enumerate(texts)]
        padded, alone = self._prefill(rows)[0].float(), self._prefill(rows[:1])[0].float()
        self.drop()
        tolerance = _TOLERANCE if self._policy.model.dtype.itemsize >= 4 and self._policy.autocast is None else 0.1
        return bool((padded - alone).abs().max() <= tolerance * alone.abs().max())

    def _token_bytes(self) -> int:
        config = self._policy.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * dim * self._policy.model.dtype.itemsize)

    def _width(self, row: Row, max_new_tokens: int) -> int:
        return len(row.prompt.tokens) + max_new_tokens

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
