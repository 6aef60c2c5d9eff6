"""What every kind of policy offers to the trainer, whatever model stands behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from upslope.policies.sampling import Sampling
from upslope.records import Batch, Prompt, Rollout, Scores


class Policy(Protocol):
    """A language model that scores actions: causal, encoder-decoder, classifier or tagger.

    How it computes (padded or packed, shared prompts) changes no number beyond the dtype's rounding: scores do not
    depend on batch order, padding or micro-batch, and are free of dropout.
    """

    @property
    def module(self) -> nn.Module:
        """Everything with weights: the model, and the critic where there is one."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights lie, and where batches must lie to be scored."""
        ...

    @property
    def backend(self) -> Mapping[str, str]:
        """How batches are scored where there are several ways, by part; for the log."""
        ...

    @property
    def takes_chats(self) -> bool:
        """Whether a chat goes through a template of the model's own."""
        ...

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its tokens, as the model's own tokenizer and chat template give them."""
        ...

    def cuts(self, prompt: Prompt) -> bool:
        """Whether encoding the prompt leaves out the end of its text."""
        ...

    def room(self, prompt: Prompt) -> int | None:
        """How many tokens may be written after an encoded prompt; None where there is no limit."""
        ...

    def demonstration(self, prompt: Prompt, completion: Any) -> Rollout:
        """The row that answers a prompt with this completion (a text, a label, a list of tags), to learn from.

        Raises: DataError for a completion that the model cannot write.
        """
        ...

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each action (a token, a label); joined, they are the text of all."""
        ...

    def micro_batches(self, batch: Batch, *, max_tokens: int) -> list[Tensor]:
        """Row indices of pieces whose computed tokens fit in max_tokens, groups kept whole where they fit."""
        ...

    def score(self, batch: Batch, *, sampling: Sampling, entropy: bool = False, values: bool = False) -> Scores:
        """Log-probabilities [M] of the batch's actions under the distribution `sampling` describes; differentiable."""
        ...

    def distributions(self, batch: Batch) -> Iterator[Tensor]:
        """The model's logits at every action, in order, as chunks [m, K]."""
        ...

    def reference(self) -> AbstractContextManager[Policy]:
        """The frozen policy that training started from, to score with."""
        ...

    def dropout(self, enabled: bool) -> AbstractContextManager[None]:
        """Within the context the model's own dropout acts (supervised training) or is off (everything else)."""
        ...

    def save(self, folder: Path) -> None:
        """Write an ordinary Transformers folder (adapters merged), tokenizer included."""
        ...


class ReadablePolicy(Policy, Protocol):
    """A policy whose hidden states can be read, to fit something on them."""

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states [M, H] of the model's own trunk, that which decides each action."""
        ...

    def action_vectors(self) -> Tensor:
        """A vector for each of the K actions there are, [K, E]: the output head's rows, or the identity for labels."""
        ...
