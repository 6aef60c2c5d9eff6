"""The key-value cache in pages: allocated once within a budget, and shared by rows that begin alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from upslope.kernels.attention import PAGE, Heads, LayerCache


class PageCache:
    """`capacity` pages of PAGE tokens over all layers, counted by reference.

    Full pages of prompts are known by their tokens and what came before them, so that a later prompt which begins alike
    takes them over instead of computing them again.
    """

    def __init__(self, *, layers: int, heads: Heads, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = capacity
        shape = (layers, capacity, heads.keys)  # zeros: what no row wrote must not be a NaN
        self._keys = torch.zeros((*shape, heads.dim, PAGE), dtype=dtype, device=device)
        self._values = torch.zeros((*shape, PAGE, heads.width), dtype=dtype, device=device)
        self._free = list(range(capacity - 1, -1, -1))
        self._references = [0] * capacity
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        self._names: dict[int, tuple[int, tuple[int, ...]]] = {}

    @staticmethod
    def page_bytes(*, layers: int, heads: Heads, dtype: torch.dtype) -> int:
        """Bytes of one page over all layers."""
        return layers * heads.keys * PAGE * (heads.dim + heads.width) * dtype.itemsize

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def layer(self, index: int) -> LayerCache:
        """One layer's keys and values."""
        return LayerCache(self._keys[index], self._values[index])

    def take(self, count: int) -> list[int]:
        """`count` free pages, held once."""
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Hold pages once more."""
        for page in pages:
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Let go of pages; those that nobody holds any more are free and forgotten."""
        for page in pages:
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)
                if page in self._names:
                    del self._known[self._names.pop(page)]

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The pages, not yet held for the caller, that hold the beginning of these tokens already."""
        found: list[int] = []
        for name in _names(tokens, found):
            page = self._known.get(name)
            if page is None:
                break
            found.append(page)
        return found

    def remember(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Make the full pages of these computed tokens known."""
        for page, name in zip(pages, _names(tokens, pages), strict=False):
            if name not in self._known and page not in self._names:
                self._known[name] = page
                self._names[page] = name

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Copy one page of every layer into each of the targets."""
        for target in targets:
            self._keys[:, target] = self._keys[:, source]
            self._values[:, target] = self._values[:, source]


def _names(tokens: Sequence[int], pages: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The name of each full page of the tokens: the page before it (-1 at the start) and its own tokens. `pages` may
    grow while the names are read."""
    for number in range(len(tokens) // PAGE):
        before = pages[number - 1] if number else -1
        yield before, tuple(tokens[number * PAGE : (number + 1) * PAGE])
