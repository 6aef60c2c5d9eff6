"""What Transformers' own forwards share as engines: rows in progress over one padded cache, within a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from upslope.engines.rows import Row, no_room
from upslope.policies.transformers_policy import TransformersPolicy
from upslope.stopwatch import span

PolicyT = TypeVar("PolicyT", bound=TransformersPolicy)


class PaddedForward(ABC, Generic[PolicyT]):
    """Rows in progress, at most max_rows, over one cache of at most cache_bytes (None: any); see rows.Forward.

    All rows of the cache are as wide as the widest. Rows enter only when all before them are finished, and every
    distinct prompt is then computed once. The cache grows token by token.
    """

    def __init__(self, policy: PolicyT, *, max_rows: int, cache_bytes: int | None) -> None:
        self._policy, self._max_rows, self._cache_bytes = policy, max_rows, cache_bytes
        self._max_new_tokens = 0
        self._cache: Any = None

    @abstractmethod
    def _token_bytes(self) -> int:
        """Bytes of a row's cache for each token of its width."""

    @abstractmethod
    def _width(self, row: Row, max_new_tokens: int) -> int:
        """Tokens that a row takes in the cache once it is finished."""

    @abstractmethod
    def _prefill(self, rows: Sequence[Row]) -> Tensor:
        """Make the cache of these rows; their next-token logits [B, V]."""

    def load(self) -> None:
        """The weights are the policy's own; only what older ones computed has to go."""
        self.drop()

    def rest(self) -> None:
        """The weights are the policy's own; only the cache has to go."""
        self.drop()

    def drop(self) -> None:
        """Give the cache's memory back."""
        self._cache = None

    def start(self, rows: Sequence[Row], *, max_new_tokens: int) -> None:
        """Make ready for new rows. Raises: ModelError when the budget does not hold the longest of them."""
        self.drop()
        self._max_new_tokens = max_new_tokens
        longest = max(rows, key=lambda row: self._width(row, max_new_tokens))
        need = self._bytes([longest], max_new_tokens)
        if self._cache_bytes is not None and need > self._cache_bytes:
            raise no_room(longest.prompt, need, self._cache_bytes)

    def memory(self, rows: Sequence[Row], *, max_new_tokens: int) -> tuple[int, int]:
        """Bytes of its own copies of the weights, which are none, and of the cache that these rows take at most."""
        widest = sorted(rows, key=lambda row: self._width(row, max_new_tokens), reverse=True)[: self._max_rows]
        need = self._bytes(widest, max_new_tokens)
        return 0, need if self._cache_bytes is None else min(need, self._cache_bytes)

    def _bytes(self, rows: Sequence[Row], max_new_tokens: int) -> int:
        widest = max((self._width(row, max_new_tokens) for row in rows), default=0)
        return len(rows) * widest * self._token_bytes()

    def admit(self, waiting: Sequence[Row]) -> tuple[int, Tensor | None]:
        """Take in as many rows as there is room for, when none is in progress."""
        if self._cache is not None:
            return 0, None
        count = min(len(waiting), self._max_rows)
        while self._cache_bytes is not None and self._bytes(waiting[:count], self._max_new_tokens) > self._cache_bytes:
            count -= 1
        with span("prefill"):
            return count, self._prefill(waiting[:count])
