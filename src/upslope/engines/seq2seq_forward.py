"""Generation by an encoder-decoder: Transformers' own forward with its caches of the decoder and of the source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from upslope.engines.padded import PaddedForward
from upslope.engines.rows import Row
from upslope.policies.seq2seq import Seq2SeqPolicy
from upslope.stopwatch import span


class Seq2SeqForward(PaddedForward[Seq2SeqPolicy]):
    """Encoder-decoders of Transformers; see PaddedForward. All rows stand at the same place of the decoder's stream."""

    def __init__(self, policy: Seq2SeqPolicy, *, max_rows: int, cache_bytes: int | None) -> None:
        super().__init__(policy, max_rows=max_rows, cache_bytes=cache_bytes)
        self._states = self._mask = torch.empty(0)

    def _token_bytes(self) -> int:
        config = self._policy.model.config.get_text_config(decoder=True)
        return int(2 * config.num_hidden_layers * config.hidden_size * self._policy.model.dtype.itemsize)

    def _width(self, row: Row, max_new_tokens: int) -> int:
        return len(row.prompt.tokens) + len(self._policy.start) + max_new_tokens

    def drop(self) -> None:
        """Give the memory of the caches and of the encoded sources back."""
        super().drop()
        self._states = self._mask = torch.empty(0)

    def admit(self, waiting: Sequence[Row]) -> tuple[int, Tensor | None]:
        """Take in rows of which equally much is written already, when none is in progress."""
        written = [len(row.actions) for row in waiting]
        alike = next((i for i, count in enumerate(written) if count != written[0]), len(waiting))
        return super().admit(waiting[:alike])

    def _prefill(self, rows: Sequence[Row]) -> Tensor:
        self._encode(rows)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        written = [(*self._policy.start, *row.actions) for row in rows]
        return self._decode(torch.tensor(written, device=self._policy.device))

    def _encode(self, rows: Sequence[Row]) -> None:
        policy = self._policy
        sources = {row.group: torch.tensor(row.prompt.tokens) for row in rows}
        order = {group: place for place, group in enumerate(sources)}
        ids = torch.nn.utils.rnn.pad_sequence(list(sources.values()), batch_first=True, padding_value=policy.pad_id)
        lengths = torch.tensor([len(source) for source in sources.values()])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long().to(policy.device)
        states = policy.encoded(ids.to(policy.device), mask)
        of_row = torch.tensor([order[row.group] for row in rows], device=policy.device)
        self._states, self._mask = states[of_row], mask[of_row]

    def keep(self, alive: Sequence[int]) -> None:
        """Forget all rows but these; a row may be named several times, for beams."""
        if not alive:
            self.drop()
            return
        index = torch.tensor(alive, device=self._policy.device)
        self._cache.self_attention_cache.batch_select_indices(index)
        self._cache.cross_attention_cache.batch_select_indices(index)
        self._states, self._mask = self._states[index], self._mask[index]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] a row."""
        with span("decode"):
            return self._decode(tokens[:, None])

    def _decode(self, tokens: Tensor) -> Tensor:
        output = self._policy.run(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._mask,
            decoder_input_ids=tokens,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
