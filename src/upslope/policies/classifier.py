"""The classifier policy: an encoder or decoder with a sequence-classification head; one action a row, its label."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import DataError
from upslope.policies.single_pass import Rows, SinglePassPolicy, read_with_states, trunk_states
from upslope.records import Prompt


class ClassifierPolicy(SinglePassPolicy):
    """Scores labels of whole texts by any AutoModelForSequenceClassification-like model.

    Encoders pool as they do. Of decoders the last token is read, by its place: Transformers looks for it by the
    padding id, and errs where a text ends in that, as with pad == EOS (transformers#35352).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **held: Any) -> None:
        super().__init__(model, tokenizer, **held)
        self._reads_last = self._probe()

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its text's tokens, cut at max_length. Raises: DataError for a text without tokens."""
        ids = self.tokenizer(prompt.text, truncation=True, max_length=self.max_length)["input_ids"]
        if not ids:
            raise DataError(f"{prompt.name} has no tokens, so there is nothing to classify")
        return self._known(dataclasses.replace(prompt, tokens=tuple(int(i) for i in ids)))

    def cuts(self, prompt: Prompt) -> bool:
        """Whether the text has more than max_length tokens."""
        return len(self.tokenizer(prompt.text, verbose=False)["input_ids"]) > self.max_length

    def positions(self, prompt: Prompt) -> tuple[int, ...]:
        """The last token; for an encoder merely where the row ends."""
        return (len(prompt.tokens) - 1,)

    @torch.no_grad()
    def _probe(self) -> bool:
        """Whether the model's logits are its head on the last token's state, as decoders compute them."""
        head: nn.Module | None = getattr(self._base, "score", None)
        if head is None:
            return False
        paddings = (self._base.config.get_text_config().pad_token_id, self.pad_id)
        ids = torch.tensor([[i for i in range(5) if i not in paddings]], device=self.device)
        row = Rows(ids, torch.ones_like(ids), torch.tensor([0]), torch.tensor([ids.shape[1] - 1]))
        expected = read_with_states(self._base, row)[0].float()
        actual = head(trunk_states(self._base.base_model, row)[row.row, row.place]).float()
        return bool((actual - expected).abs().max() <= 1e-2 * expected.abs().max())

    def _read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        if self._reads_last:
            hidden = self._states(self._base.base_model, rows)
            return cast(Any, self._base).score(hidden), hidden
        logits, states = read_with_states(self._base, rows)
        return logits[rows.row], states[rows.row, 0]

    def _states(self, trunk: nn.Module, rows: Rows) -> Tensor:
        states = trunk_states(trunk, rows)
        return states[rows.row, rows.place] if self._reads_last else states[rows.row, 0]
