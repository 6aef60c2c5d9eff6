"""The tagger policy: an encoder or decoder with a token-classification head; one action a word, its tag."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import DataError
from upslope.policies.single_pass import Rows, SinglePassPolicy, read_with_states, trunk_states
from upslope.records import Prompt


class TaggerPolicy(SinglePassPolicy):
    """Scores tags of words by any AutoModelForTokenClassification-like model; a word is decided at its first piece.

    The words of a prompt are its column "words" where it has one, else its text cut at blank space. With BIO tags, an
    I-X may only follow a B-X or an I-X.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **held: Any) -> None:
        super().__init__(model, tokenizer, **held)
        self.transitions = bio_transitions(self.labels)

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with the tokens of its words.

        Raises: DataError for a prompt without words, with a word of which the tokenizer leaves nothing, or too long.
        """
        if not words_of(prompt):
            raise DataError(f"{prompt.name} has no words, so there is nothing to tag")
        tokens, _ = self._pieces(prompt)
        if len(tokens) > self.max_length:
            raise DataError(
                f"{prompt.name} has {len(tokens)} tokens, which exceeds the {self.max_length} that are read "
                "(model.max_length, or the model's context); cut it into sentences"
            )
        return self._known(dataclasses.replace(prompt, tokens=tokens))

    def positions(self, prompt: Prompt) -> tuple[int, ...]:
        """The first piece of every word."""
        return self._pieces(prompt)[1]

    def _pieces(self, prompt: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a prompt's words, one blank apart, and the place of the first of each."""
        words = words_of(prompt)
        encoded = self.tokenizer(" ".join(words), return_offsets_mapping=True, verbose=False)
        return tuple(encoded["input_ids"]), _first_pieces(prompt, words, encoded["offset_mapping"])

    def _read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        logits, states = read_with_states(self._base, rows)
        return logits[rows.row, rows.place], states[rows.row, rows.place]

    def _states(self, trunk: nn.Module, rows: Rows) -> Tensor:
        return trunk_states(trunk, rows)[rows.row, rows.place]


def words_of(prompt: Prompt) -> tuple[str, ...]:
    """The words that get a tag each."""
    words = prompt.columns.get("words")
    return tuple(prompt.text.split()) if words is None else tuple(words)


def bio_transitions(labels: Sequence[str]) -> Tensor | None:
    """Bool [K + 1, K]: may the second tag follow the first (row K: begin a row)? None where all may.

    I-X continues an entity of X, so it must follow B-X or I-X; unless there is no B-X, and I-X begins entities as well.
    """
    allowed = torch.ones(len(labels) + 1, len(labels), dtype=torch.bool)
    for column, label in enumerate(labels):
        begin = f"B-{label[2:]}"
        if label.startswith("I-") and begin in labels:
            allowed[:, column] = torch.tensor([before in (begin, label) for before in (*labels, None)])
    return None if allowed.all() else allowed


def _first_pieces(prompt: Prompt, words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The index of the first token that lies within each of the words, which stand one blank apart."""
    found: list[int] = []
    place = start = 0
    for word in words:
        end = start + len(word)
        while place < len(offsets) and offsets[place][1] <= start:
            place += 1
        if place == len(offsets) or offsets[place][0] >= end:
            raise DataError(f"{prompt.name} has the word {word!r}, of which the tokenizer leaves no token")
        if found and found[-1] == place:
            raise DataError(f"{prompt.name} has the word {word!r}, which the tokenizer joins to the one before it")
        found.append(place)
        start = end + 1
    return tuple(found)
