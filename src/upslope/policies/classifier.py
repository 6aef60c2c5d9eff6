"""The classifier policy: an encoder or decoder with a sequence-classification head; one action a row, its label."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from upslope.errors import DataError
from upslope.policies.single_pass import Rows, SinglePassPolicy, read_with_states, trunk_states
from upslope.records import Prompt


class ClassifierPolicy(SinglePassPolicy):
    """Scores labels of whole texts by any AutoModelForSequenceClassification-like model.

    Encoders pool as they do. Of decoders the last token is read, by its place: Transformers looks for it by the
    padding id, and errs where that is the end of sequence (transformers#35352).
    """

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its text's tokens, cut at max_length. Raises: DataError for a text without tokens."""
        ids = self.tokenizer(prompt.text, truncation=True, max_length=self.max_length)["input_ids"]
        if not ids:
            raise DataError(f"prompt {prompt.id} has no tokens, so there is nothing to classify")
        return dataclasses.replace(prompt, tokens=tuple(int(i) for i in ids))

    def cuts(self, prompt: Prompt) -> bool:
        """Whether the text has more than max_length tokens."""
        return len(self.tokenizer(prompt.text, verbose=False)["input_ids"]) > self.max_length

    def positions(self, prompt: Prompt) -> tuple[int, ...]:
        """The last token; for an encoder merely where the row ends."""
        return (len(prompt.tokens) - 1,)

    @property
    def _decoder_head(self) -> nn.Module | None:
        """The head of a decoder; None for encoders, which pool and head in ways of their own."""
        score = getattr(self._base, "score", None)
        return score if isinstance(score, nn.Module) else None

    def _read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        head = self._decoder_head
        if head is not None:
            hidden = self._states(self._base.base_model, rows)
            return head(hidden), hidden
        logits, states = read_with_states(self._base, rows)
        return logits[rows.row], states[rows.row, 0]

    def _states(self, trunk: nn.Module, rows: Rows) -> Tensor:
        states = trunk_states(trunk, rows)
        return states[rows.row, rows.place] if self._decoder_head is not None else states[rows.row, 0]
