"""One row while it is generated, and what every way to compute its logits offers to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from upslope.errors import ModelError
from upslope.records import Prompt, StopReason


@dataclass(slots=True)
class Row:
    """One row while it is being generated; prompt is what it is computed after, what was kept of it included."""

    prompt: Prompt
    group: int
    sample: int
    actions: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    stop_reason: StopReason | None = None


class Forward(Protocol):
    """Next-token logits of the rows in progress, which stand in the order in which they were admitted."""

    def start(self, rows: Sequence[Row], *, max_new_tokens: int) -> None:
        """Make ready for these rows, none of which is admitted yet.

        Raises: ModelError when there is no room for the longest of them.
        """
        ...

    def admit(self, waiting: Sequence[Row]) -> tuple[int, Tensor | None]:
        """Take in as many of the waiting rows, from the first on, as there is room for: (how many, their logits)."""
        ...

    def keep(self, alive: Sequence[int]) -> None:
        """Forget all rows but these, named by their place in order."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] a row."""
        ...

    def load(self) -> None:
        """Take the model's weights as they are now, and forget what older ones computed."""
        ...

    def rest(self) -> None:
        """Give back all memory, copies of weights too, until they are loaded again."""
        ...

    def drop(self) -> None:
        """Give all memory back."""
        ...

    def memory(self, rows: Sequence[Row], *, max_new_tokens: int) -> tuple[int, int]:
        """Bytes of its own copies of the weights, and of the cache that these rows take at most."""
        ...


def no_room(prompt: Prompt, need_bytes: int, budget_bytes: int) -> ModelError:
    """The error for a prompt whose row alone takes more cache than there may be."""
    return ModelError(
        f"a row of prompt {prompt.id} needs {need_bytes / 2**30:.3g} GiB of key-value cache, but engine.cache_gib is "
        f"{budget_bytes / 2**30:.3g}; raise it, or lower sampling.max_new_tokens"
    )
