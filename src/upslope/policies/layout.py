"""How a packed batch is laid out for a Transformers forward: rows of one prompt share one copy of it.

A *segment* is one row of the forward: a prefix that several batch rows share, followed by their tails one after the
other. The attention mask lets a tail see the prefix and itself, and position ids continue from the prefix, so the
numbers are those of separate rows while the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.records import Batch


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows computed together: their first `prefix` tokens are equal; `lengths` tokens of each row are computed."""

    rows: tuple[int, ...]
    prefix: int
    lengths: tuple[int, ...]

    @property
    def width(self) -> int:
        """Tokens the segment costs."""
        return self.prefix + sum(length - self.prefix for length in self.lengths)


@dataclass(frozen=True, slots=True)
class Layout:
    """Inputs of a forward over R segments of width T, and where to read the outputs.

    input_ids, position_ids [R, T]; mask is additive [R, 1, T, T] where tails share a prefix, else ones and zeros
    [R, T]; actions [M] and last [B] are indices into the flattened [R * T] outputs.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    actions: Tensor
    last: Tensor


def segments(batch: Batch, *, share: bool, with_last: bool) -> list[Segment]:
    """Cut the batch into segments: one a group whose rows share their prompt when `share`, else one a row.

    Tokens after a row's last decision are computed only when with_last and the row did not terminate: nothing else
    reads them.
    """
    ends = batch.num_actions.cumsum(0)
    last_position = batch.positions[ends - 1]
    first_position = batch.positions[ends - batch.num_actions]
    keep_all = (~batch.terminated) if with_last else torch.zeros_like(batch.terminated)
    lengths = torch.where(keep_all, batch.row_lengths, last_position + 1).tolist()
    if not share:
        return [Segment((row,), lengths[row], (lengths[row],)) for row in range(batch.num_rows)]
    rows_of_group: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group.tolist()):
        rows_of_group.setdefault(group, []).append(row)
    tokens = batch.tokens.split(batch.row_lengths.tolist())
    prompt_lengths = (first_position + 1).tolist()
    found = []
    for rows in rows_of_group.values():
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            by_prompt.setdefault(tuple(tokens[row][: prompt_lengths[row]].tolist()), []).append(row)
        for prompt, members in by_prompt.items():
            found.append(Segment(tuple(members), len(prompt), tuple(lengths[row] for row in members)))
    return found


def probe(vocabulary: int) -> Batch:
    """Two rows of three tokens after a shared prompt of three, to try an architecture on before it shares prompts."""
    prompt, *tails = torch.randint(vocabulary, (3, 3), generator=torch.Generator().manual_seed(0))
    return Batch(
        tokens=torch.cat([prompt, tails[0], prompt, tails[1]]),
        row_lengths=torch.tensor([6, 6]),
        actions=torch.cat(tails),
        positions=torch.tensor([2, 3, 4, 2, 3, 4]),
        num_actions=torch.tensor([3, 3]),
        engine_logprobs=torch.zeros(6),
        terminated=torch.tensor([True, True]),
        group=torch.tensor([0, 0]),
        version=torch.tensor([0, 0]),
    )


def plan(found: Sequence[Segment], *, max_tokens: int) -> list[list[int]]:
    """Row indices of micro-batches of at most max_tokens computed tokens (padding included).

    Segments of similar width go together; one wider than max_tokens is split between its rows, and a row wider than
    max_tokens stands alone.
    """
    pieces = [piece for segment in found for piece in _split(segment, max_tokens)]
    pieces.sort(key=lambda piece: (-piece.width, piece.rows))
    micro_batches: list[list[int]] = []
    width = count = 0
    for piece in pieces:
        if not micro_batches or (count + 1) * width > max_tokens:
            micro_batches.append([])
            width, count = piece.width, 0
        micro_batches[-1].extend(piece.rows)
        count += 1
    return micro_batches


def _split(segment: Segment, max_tokens: int) -> list[Segment]:
    pieces: list[Segment] = []
    rows: list[int] = []
    lengths: list[int] = []
    for row, length in zip(segment.rows, segment.lengths, strict=True):
        if rows and Segment(tuple(rows), segment.prefix, (*lengths, length)).width > max_tokens:
            pieces.append(Segment(tuple(rows), segment.prefix, tuple(lengths)))
            rows, lengths = [], []
        rows.append(row)
        lengths.append(length)
    return [*pieces, Segment(tuple(rows), segment.prefix, tuple(lengths))]


def arrange(batch: Batch, found: Sequence[Segment], *, pad_id: int, dtype: torch.dtype) -> Layout:
    """Lay the segments out as rows of one padded forward."""
    device = batch.tokens.device
    width = max(segment.width for segment in found)
    input_ids = torch.full((len(found), width), pad_id, dtype=torch.int64)
    position_ids = torch.zeros((len(found), width), dtype=torch.int64)
    owner = torch.full((len(found), width), -1, dtype=torch.int64)  # -1 padding, 0 prefix, 1.. the tail's number
    tokens = batch.tokens.cpu().split(batch.row_lengths.tolist())
    positions = batch.positions.cpu().split(batch.num_actions.tolist())
    actions: list[Tensor] = [torch.empty(0)] * batch.num_rows
    last = torch.empty(batch.num_rows, dtype=torch.int64)
    for index, segment in enumerate(found):
        prefix, cursor = segment.prefix, segment.prefix
        input_ids[index, :prefix] = tokens[segment.rows[0]][:prefix]
        position_ids[index, :prefix] = torch.arange(prefix)
        owner[index, :prefix] = 0
        for number, (row, length) in enumerate(zip(segment.rows, segment.lengths, strict=True), start=1):
            tail = slice(cursor, cursor + length - prefix)
            input_ids[index, tail] = tokens[row][prefix:length]
            position_ids[index, tail] = torch.arange(prefix, length)
            owner[index, tail] = number
            shift = index * width + torch.where(positions[row] < prefix, 0, cursor - prefix)
            actions[row] = positions[row] + shift
            last[row] = index * width + (cursor + length - prefix - 1 if length > prefix else prefix - 1)
            cursor += length - prefix
    shared = any(len(segment.rows) > 1 for segment in found)
    mask = _tree_mask(owner, dtype) if shared else (owner >= 0).long()
    return Layout(
        input_ids.to(device), position_ids.to(device), mask.to(device), torch.cat(actions).to(device), last.to(device)
    )


def _tree_mask(owner: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive [R, 1, T, T]: a token sees earlier tokens of the prefix and of its own tail."""
    query, key = owner[:, :, None], owner[:, None, :]
    seen = ((key == 0) | (key == query)) & torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
