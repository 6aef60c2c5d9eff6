"""Generation over pages: rows enter whenever there is room, prompts and their common beginnings are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.engines.decoder import Decoder, Prefill
from upslope.engines.pages import PageCache
from upslope.engines.rows import Row, no_room
from upslope.errors import ModelError
from upslope.kernels.attention import PAGE, Places
from upslope.records import Prompt
from upslope.stopwatch import span

_PREFILL_TOKENS = 512  # computed in one forward: more would not stay in the processor's cache


@dataclass(slots=True)
class _Prompt:
    """A computed prompt whose rows are being admitted: its pages, held once, and its next-token logits [V]."""

    tokens: tuple[int, ...]
    pages: list[int]
    logits: Tensor


class PagedForward:
    """Rows in progress over a paged cache of at most cache_bytes, and max_rows at a time; see rows.Forward.

    A row takes all the pages it may need when it enters, so that none ever has to leave before it is finished. A page
    that a prompt fills is shared by the prompt's rows, and by later prompts that begin alike.
    """

    def __init__(self, decoder: Decoder, *, max_rows: int, cache_bytes: int) -> None:
        self._decoder, self._max_rows, self._cache_bytes = decoder, max_rows, cache_bytes
        self._heads = decoder.architecture.heads
        self._weight = decoder.architecture.embedding.weight
        self._cache: PageCache | None = None
        self._max_new_tokens = 0
        self._clear()

    def start(self, rows: Sequence[Row], *, max_new_tokens: int) -> None:
        """Make ready for these rows: an empty cache as large as they need, within the budget.

        Raises: ModelError when the budget does not hold the longest row.
        """
        assert not self._own
        assert not self._prompts
        self._max_new_tokens = max_new_tokens
        layers, page_bytes = len(self._decoder.architecture.blocks), self._page_bytes
        budget = self._cache_bytes // page_bytes
        longest = max((row.prompt for row in rows), key=self._need)
        if self._need(longest) > budget:
            raise no_room(longest, self._need(longest) * page_bytes, self._cache_bytes)
        wanted = min(budget, self._demand(rows, max_new_tokens))
        if self._cache is None or self._cache.capacity < wanted:
            self._cache = None  # the old one goes before the new one comes
            self._cache = PageCache(
                layers=layers, heads=self._heads, capacity=wanted, dtype=self._weight.dtype, device=self._weight.device
            )

    @property
    def _page_bytes(self) -> int:
        layers = len(self._decoder.architecture.blocks)
        return PageCache.page_bytes(layers=layers, heads=self._heads, dtype=self._weight.dtype)

    def memory(self, rows: Sequence[Row], *, max_new_tokens: int) -> tuple[int, int]:
        """Bytes of the decoder's own copies of the weights, and of the cache that `start` would make."""
        cache = self._demand(rows, max_new_tokens) * self._page_bytes
        return self._decoder.weight_bytes, min(self._cache_bytes, cache)

    def load(self) -> None:
        """Take the model's weights as they are now; no page of older ones is known any more, for no row holds one."""
        self._decoder.load()

    def _need(self, prompt: Prompt) -> int:
        """Pages of a prompt and its first row."""
        length = len(prompt.tokens)
        return _pages(length) + _own_pages(length, self._max_new_tokens)

    def _demand(self, rows: Sequence[Row], max_new_tokens: int) -> int:
        """Pages that max_rows of these rows can hold at a time, at most."""
        own = [_own_pages(len(row.prompt.tokens), max_new_tokens) for row in rows]
        prompts = {row.group: _pages(len(row.prompt.tokens)) for row in rows}
        return sum(sum(sorted(pages)[-self._max_rows :]) for pages in (own, prompts.values()))

    def rest(self) -> None:
        """Give back the cache and the decoder's copies of the weights, until they are loaded again."""
        self.drop()
        self._decoder.rest()

    def drop(self) -> None:
        """Give the cache's memory back, and with it what a row of non-finite numbers may have left there."""
        self._cache = None
        self._clear()

    def _clear(self) -> None:
        self._own: list[list[int]] = []
        self._prompts: dict[int, _Prompt] = {}
        nowhere = torch.zeros(0, dtype=torch.int64, device=self._weight.device)
        self._places = Places(nowhere.view(0, 0), nowhere)

    def admit(self, waiting: Sequence[Row]) -> tuple[int, Tensor | None]:
        """Take in rows from the first waiting one on; prompts not seen before are computed together."""
        cache = self._ready()
        room = self._room(cache, waiting)
        rows = waiting[:room]
        if not rows:
            return 0, None
        with span("prefill"):
            self._compute([row for row in rows if row.group not in self._prompts])
            logits = torch.stack([self._enter(cache, row) for row in rows])
            entered = self._own[-len(rows) :]
            self._places = _joined(self._places, entered, [len(row.prompt.tokens) - 1 for row in rows])
            going_on = waiting[room].group if room < len(waiting) else None
            for group in [group for group in self._prompts if group != going_on]:
                cache.release(self._prompts.pop(group).pages)
        return room, logits

    def _ready(self) -> PageCache:
        if self._cache is None:
            raise ModelError("the engine has no cache yet; call start(rows) first")
        return self._cache

    def _room(self, cache: PageCache, waiting: Sequence[Row]) -> int:
        """How many of the waiting rows fit now, each counted with all the pages it may need."""
        free, room, seen = cache.num_free, 0, set(self._prompts)
        for row in waiting[: self._max_rows - len(self._own)]:
            length = len(row.prompt.tokens)
            need = _own_pages(length, self._max_new_tokens)
            if row.group not in seen:
                need += _pages(length)
                seen.add(row.group)
            if need > free:
                break
            free, room = free - need, room + 1
        return room

    def _compute(self, rows: Sequence[Row]) -> None:
        """Compute the distinct prompts of these rows. One that begins like another waits until that one is there."""
        cache = self._ready()
        waiting = {row.group: row.prompt.tokens for row in rows}
        while waiting:
            batch: dict[int, Prefill] = {}
            started: set[tuple[int, ...]] = set()
            budget = _PREFILL_TOKENS
            for group, tokens in waiting.items():
                found = cache.find(tokens[:-1])  # the last token is computed anyway, for its logits
                head = tuple(tokens[: (len(found) + 1) * PAGE])
                if len(head) < len(tokens) and head in started:
                    continue
                cost = len(tokens) - len(found) * PAGE
                if batch and cost > budget:
                    continue
                budget -= cost
                started.add(head)
                cache.hold(found)
                batch[group] = Prefill(tokens, [*found, *cache.take(_pages(len(tokens)) - len(found))], len(found))
            logits = self._decoder.prefill(cache, list(batch.values()))
            for (group, prompt), row_logits in zip(batch.items(), logits, strict=True):
                cache.remember(prompt.tokens, prompt.pages)
                self._prompts[group] = _Prompt(tuple(prompt.tokens), list(prompt.pages), row_logits)
                del waiting[group]

    def _enter(self, cache: PageCache, row: Row) -> Tensor:
        """Give the row its pages: the prompt's full ones shared, the started one copied, the rest fresh."""
        prompt = self._prompts[row.group]
        full = len(prompt.tokens) // PAGE
        shared = prompt.pages[:full]
        cache.hold(shared)
        fresh = cache.take(_own_pages(len(prompt.tokens), self._max_new_tokens))
        if full < len(prompt.pages):
            cache.copy(prompt.pages[full], fresh[:1])
        self._own.append([*shared, *fresh])
        return prompt.logits

    def keep(self, alive: Sequence[int]) -> None:
        """Forget all rows but these; their pages are free for others."""
        cache, kept = self._ready(), set(alive)
        for place, pages in enumerate(self._own):
            if place not in kept:
                cache.release(pages)
        self._own = [self._own[place] for place in alive]
        index = torch.tensor(alive, dtype=torch.int64, device=self._weight.device)
        self._places = Places(self._places.pages[index], self._places.positions[index])

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] a row."""
        with span("decode"):
            self._places = Places(self._places.pages, self._places.positions + 1)
            used = int(self._places.positions.max()) // PAGE + 1
            places = Places(self._places.pages[:, :used].contiguous(), self._places.positions)
            return self._decoder.step(self._ready(), tokens, places)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)


def _own_pages(prompt: int, max_new_tokens: int) -> int:
    """Pages of a row beside those that its prompt fills."""
    return _pages(prompt + max_new_tokens) - prompt // PAGE


def _joined(places: Places, pages: Sequence[Sequence[int]], positions: Sequence[int]) -> Places:
    """Places with more rows after them; shorter lists are filled up with any page, of which nothing is seen."""
    width = max(places.pages.shape[1], *map(len, pages)) if pages else places.pages.shape[1]
    more = [[*own, *[0] * (width - len(own))] for own in pages]
    device = places.pages.device
    old = F.pad(places.pages, (0, width - places.pages.shape[1]))
    return Places(
        torch.cat((old, torch.tensor(more, dtype=torch.int64, device=device).view(-1, width))),
        torch.cat((places.positions, torch.tensor(positions, dtype=torch.int64, device=device))),
    )
