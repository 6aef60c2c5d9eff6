"""Policies that decide all of a row in one forward pass: the label of a text, the tags of its words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import DataError
from upslope.policies import layout
from upslope.policies.linear_head import action_scores
from upslope.policies.sampling import Sampling
from upslope.policies.transformers_policy import TransformersPolicy
from upslope.records import Batch, Prompt, Rollout, Scores


@dataclass(frozen=True, slots=True)
class Rows:
    """Distinct rows [U, T], padded on the right, and where each action is read: in which row, decided at which place.

    input_ids, mask [U, T]; row, place [M].
    """

    input_ids: Tensor
    mask: Tensor
    row: Tensor
    place: Tensor


class SinglePassPolicy(TransformersPolicy, ABC):
    """Scores labels that a Transformers model with a classification head gives in one pass; kinds of policy derive.

    An action is an index into `labels`, which stand in the model's config. Texts are cut at max_length tokens, by
    default at what the model can read. transitions [K + 1, K], where there are any, say which label may follow which
    within a row (K: none yet): what may not is given no probability.
    """

    transitions: Tensor | None = None

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, **held: Any
    ) -> None:
        super().__init__(model, tokenizer, **held)
        names: Mapping[int, str] = self._base.config.id2label
        self.labels = tuple(names[index] for index in sorted(names))
        limits = (max_length, self.context_length, tokenizer.model_max_length)
        self.max_length = min(limit for limit in limits if limit is not None)

    @abstractmethod
    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its tokens."""

    @abstractmethod
    def positions(self, prompt: Prompt) -> tuple[int, ...]:
        """Where in an encoded prompt its decisions are read."""

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The label of each action, all but the first after a blank."""
        return [" " * (place > 0) + self.labels[action] for place, action in enumerate(tokens)]

    def describe(self, actions: Sequence[int]) -> str:
        """The actions' labels as text, what reward functions get as `completion`."""
        return "".join(self.pieces(actions))

    def room(self, prompt: Prompt) -> int | None:  # noqa: ARG002 - nothing is appended
        """No limit: nothing is written."""
        return None

    def blank(self, prompt: Prompt) -> Rollout:
        """An encoded prompt as a rollout of log-probability 0 in which every decision is still the first label."""
        positions = self.positions(prompt)
        return Rollout(
            prompt=prompt,
            group=0,
            sample=0,
            tokens=prompt.tokens,
            actions=(0,) * len(positions),
            positions=positions,
            engine_logprobs=(0.0,) * len(positions),
            text="",
            stop_reason="action",
        )

    def filled(self, blank: Rollout, actions: Sequence[int]) -> Rollout:
        """A rollout with these decisions, and with their labels as its text."""
        return blank.replace(actions=tuple(actions), text=self.describe(actions))

    def demonstration(self, prompt: Prompt, completion: Any) -> Rollout:
        """The prompt with the labels it should get, one of them or a list.

        Raises: DataError for a label that the model does not know or that may not follow the one before it, or where
        their number is not that of the decisions.
        """
        blank = self.blank(self.encode(prompt))
        wanted = [completion] if isinstance(completion, str) else list(completion)
        known = {label: index for index, label in enumerate(self.labels)}
        for label in wanted:
            if label not in known:
                _unknown(prompt, label, self.labels)
        if len(wanted) != len(blank.actions):
            raise DataError(f"{prompt.name} has {len(wanted)} labels for {len(blank.actions)} decisions")
        actions = [known[label] for label in wanted]
        self._check_order(prompt, wanted, actions)
        return self.filled(blank, actions)

    def _check_order(self, prompt: Prompt, labels: Sequence[str], actions: Sequence[int]) -> None:
        if self.transitions is None:
            return
        for place, (before, action) in enumerate(pairwise([len(self.labels), *actions])):
            if not self.transitions[before, action]:
                after = f"after {labels[place - 1]!r}" if place else "at its beginning"
                raise DataError(
                    f"{prompt.name} has {labels[place]!r} {after}, but I- goes on with an entity that B- began"
                )

    def micro_batches(self, batch: Batch, *, max_tokens: int) -> list[Tensor]:
        """Row indices of pieces that compute at most max_tokens tokens each, padding included, equal rows once."""
        lengths = batch.row_lengths.tolist()
        found = [
            layout.Segment(tuple(rows), lengths[rows[0]], (lengths[rows[0]],) * len(rows)) for rows in _equal(batch)
        ]
        return [torch.tensor(rows) for rows in layout.plan(found, max_tokens=max_tokens, packed=False)]

    def score(self, batch: Batch, *, sampling: Sampling, entropy: bool = False, values: bool = False) -> Scores:
        """Log-probabilities [M] of the actions, and on request entropy [M], values [M] and bootstrap [B] (zeros).

        Raises: ModelError when values are asked of a policy without a critic.
        """
        value_head = self._value_head() if values else None
        rows = self._rows(batch)
        with self._precision():
            logits, hidden = self._read(rows)
            if values and self.module.critic is not None:
                hidden = self._states(self.module.critic, rows)
        found = action_scores(self._allowed(logits, batch), batch.actions, sampling=sampling, entropy=entropy)
        if value_head is None:
            return Scores(*found)
        return Scores(*found, value_head(hidden), found[0].new_zeros(batch.num_rows))

    def logits(self, batch: Batch) -> Tensor:
        """The model's logits [M, K] at every action, whatever may follow what."""
        with self._precision():
            return self._read(self._rows(batch))[0]

    def states(self, batch: Batch) -> Tensor:
        """Hidden states [M, H] where each decision is read."""
        with self._precision():
            return self._read(self._rows(batch))[1]

    def action_vectors(self) -> Tensor:
        """One direction a label: the identity [K, K]."""
        return torch.eye(len(self.labels), device=self.device)

    def distributions(self, batch: Batch, *, max_tokens: int = 4096) -> Iterator[Tensor]:
        """The logits [m, K] that actions are drawn by, chunk by chunk in the batch's order."""
        for rows in torch.arange(batch.num_rows).split(max(1, max_tokens // int(batch.row_lengths.max()))):
            piece = batch.select(rows)
            yield self._allowed(self.logits(piece), piece)

    @abstractmethod
    def _read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Logits [M, K] of the actions, and the hidden states [M, H] that the critic reads."""

    @abstractmethod
    def _states(self, trunk: nn.Module, rows: Rows) -> Tensor:
        """Hidden states [M, H] of a trunk where the critic reads."""

    def _allowed(self, logits: Tensor, batch: Batch) -> Tensor:
        """Logits [M, K] with -inf where the label may not follow the row's action before."""
        if self.transitions is None:
            return logits
        previous = batch.actions.roll(1)
        previous[batch.num_actions.cumsum(0) - batch.num_actions] = len(self.labels)
        return logits.masked_fill(~self.transitions.to(logits.device)[previous], float("-inf"))

    def _rows(self, batch: Batch) -> Rows:
        """The batch's distinct rows, padded."""
        equal = _equal(batch)
        tokens = batch.tokens.split(batch.row_lengths.tolist())
        chosen = [tokens[rows[0]] for rows in equal]
        input_ids = nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=self.pad_id)
        lengths = torch.tensor([len(row) for row in chosen], device=input_ids.device)
        mask = torch.arange(input_ids.shape[1], device=input_ids.device)[None] < lengths[:, None]
        place_of = {row: place for place, rows in enumerate(equal) for row in rows}
        of_row = torch.tensor([place_of[row] for row in range(batch.num_rows)], device=input_ids.device)
        return Rows(input_ids, mask.long(), of_row.repeat_interleave(batch.num_actions), batch.positions)


def trunk_states(trunk: nn.Module, rows: Rows) -> Tensor:
    """Last hidden states [U, T, H] of a Transformers trunk."""
    states: Tensor = trunk(input_ids=rows.input_ids, attention_mask=rows.mask).last_hidden_state
    return states


def read_with_states(model: PreTrainedModel, rows: Rows) -> tuple[Tensor, Tensor]:
    """The model's own logits, and the last hidden states [U, T, H] of its trunk on the way."""
    seen: list[Tensor] = []
    handle = model.base_model.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    try:
        logits: Tensor = model(input_ids=rows.input_ids, attention_mask=rows.mask).logits
    finally:
        handle.remove()
    return logits, seen[0]


def _equal(batch: Batch) -> list[list[int]]:
    """The rows of a batch, gathered by equal tokens."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, tokens in enumerate(batch.tokens.split(batch.row_lengths.tolist())):
        found.setdefault(tuple(tokens.tolist()), []).append(row)
    return list(found.values())


def _unknown(prompt: Prompt, label: Any, labels: Sequence[str]) -> NoReturn:
    known = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    raise DataError(f"{prompt.name} has the label {label!r}, which is none of the model's {len(labels)}: {known}")
