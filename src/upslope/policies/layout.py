"""How a batch is laid out for a Transformers forward: rows of one prompt share one copy of it.

A *segment* is a prefix that several batch rows share, followed by their tails one after the other. Attention lets a
tail see the prefix and itself, and position ids continue from the prefix, so the numbers are those of separate rows
while the prompt is computed once. Segments lie end to end in one packed row, whose attention is attention.Blocks; or,
for architectures that do not take that, each in a padded row of its own under an explicit mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.kernels import gemm
from upslope.policies.attention import Blocks, Run, blocks
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
    """Inputs of a forward over R rows of width T, and where to read the outputs.

    input_ids, position_ids [R, T]. Packed: R = 1, blocks are set, and mask [1, 1, 1, T] only tells Transformers to make
    none. Padded: mask is additive [R, 1, T, T] where tails share a prefix, else ones and zeros [R, T]. actions [M] and
    last [B] are indices into the flattened [R * T] outputs.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    blocks: Blocks | None
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
    """Two rows of one prompt and one row of another, to try an architecture on before its rows are packed or shared."""
    draw = torch.randint(vocabulary, (5, 3), generator=torch.Generator().manual_seed(0))
    return Batch(
        tokens=torch.cat([draw[0], draw[1], draw[0], draw[2], draw[3], draw[4]]),
        row_lengths=torch.tensor([6, 6, 6]),
        actions=torch.cat([draw[1], draw[2], draw[4]]),
        positions=torch.tensor([2, 3, 4]).repeat(3),
        num_actions=torch.tensor([3, 3, 3]),
        engine_logprobs=torch.zeros(9),
        terminated=torch.tensor([True, True, True]),
        group=torch.tensor([0, 0, 1]),
        version=torch.tensor([0, 0, 0]),
    )


def plan(found: Sequence[Segment], *, max_tokens: int, packed: bool) -> list[list[int]]:
    """Row indices of micro-batches of at most max_tokens computed tokens, padding included where rows are not packed.

    A segment wider than max_tokens is split between its rows, and a row wider than max_tokens stands alone.
    """
    pieces = [piece for segment in found for piece in _split(segment, max_tokens)]
    pieces.sort(key=lambda piece: (-piece.width, piece.rows))
    micro_batches: list[list[Segment]] = []
    for piece in pieces:
        for members in micro_batches if packed else micro_batches[-1:]:
            if cost([*members, piece], packed=packed) <= max_tokens:
                members.append(piece)
                break
        else:
            micro_batches.append([piece])
    return [[row for piece in members for row in piece.rows] for members in micro_batches]


def cost(found: Sequence[Segment], *, packed: bool) -> int:
    """Tokens that a forward over these segments computes."""
    widths = [segment.width for segment in found]
    return sum(widths) if packed else len(widths) * max(widths)


def _split(segment: Segment, max_tokens: int) -> list[Segment]:
    pieces: list[Segment] = []
    rows: list[int] = []
    lengths: list[int] = []
    for row, length in zip(segment.rows, segment.lengths, strict=True):
        more = length > segment.prefix  # a row that is all prefix costs nothing more
        if rows and more and Segment(tuple(rows), segment.prefix, (*lengths, length)).width > max_tokens:
            pieces.append(Segment(tuple(rows), segment.prefix, tuple(lengths)))
            rows, lengths = [], []
        rows.append(row)
        lengths.append(length)
    return [*pieces, Segment(tuple(rows), segment.prefix, tuple(lengths))]


def arrange(batch: Batch, found: Sequence[Segment], *, packed: bool, pad_id: int, dtype: torch.dtype) -> Layout:
    """Lay the segments out end to end in one row, its end filled up, or as the rows of one padded forward."""
    widths = torch.tensor([segment.width for segment in found])
    used = int(widths.sum()) if packed else int(widths.max()) * len(found)
    width = filled(used) if packed else int(widths.max())
    starts = (widths.cumsum(0) - widths if packed else torch.arange(len(found)) * width).tolist()
    size = width if packed else used
    input_ids = torch.full((size,), pad_id, dtype=torch.int64)
    position_ids = torch.zeros(size, dtype=torch.int64)
    actions: list[Tensor] = [torch.empty(0)] * batch.num_rows
    last = torch.empty(batch.num_rows, dtype=torch.int64)
    tokens = batch.tokens.cpu().split(batch.row_lengths.tolist())
    positions = batch.positions.cpu().split(batch.num_actions.tolist())
    runs = [_runs(segment, start) for segment, start in zip(found, starts, strict=True)]
    for segment, (prompt, *tails) in zip(found, runs, strict=True):
        prefix = segment.prefix
        input_ids[prompt.start : prompt.stop] = tokens[segment.rows[0]][:prefix]
        position_ids[prompt.start : prompt.stop] = torch.arange(prefix)
        for row, length, tail in zip(segment.rows, segment.lengths, tails, strict=True):
            input_ids[tail.start : tail.stop] = tokens[row][prefix:length]
            position_ids[tail.start : tail.stop] = torch.arange(prefix, length)
            shift = torch.where(positions[row] < prefix, prompt.start, tail.start - prefix)
            actions[row] = positions[row] + shift
            last[row] = tail.stop - 1 if length > prefix else prompt.stop - 1
    device, shape = batch.tokens.device, (-1, width)
    attended = blocks([run for segment in runs for run in _joined(segment)], device=device) if packed else None
    mask = torch.empty(1, 1, 1, width, dtype=dtype) if packed else _mask(runs, size, width, dtype)
    return Layout(
        input_ids.view(shape).to(device),
        position_ids.view(shape).to(device),
        mask.to(device),
        attended,
        torch.cat(actions).to(device),
        last.to(device),
    )


def filled(tokens: int) -> int:
    """Tokens of a packed row with its end filled up by tokens that nobody sees, so that products have few shapes."""
    return tokens if gemm.backend() == "torch" else -(-tokens // gemm.ROWS) * gemm.ROWS


def _runs(segment: Segment, start: int) -> list[Run]:
    """Where the segment's prompt and then each of its tails lie, from `start` on."""
    prompt = Run(start, start + segment.prefix)
    runs, cursor = [prompt], prompt.stop
    for length in segment.lengths:
        runs.append(Run(cursor, cursor + length - segment.prefix, prompt))
        cursor = runs[-1].stop
    return runs


def _joined(runs: Sequence[Run]) -> list[Run]:
    """A segment's runs without empty ones; a prompt and its only tail are one run."""
    prompt, *tails = runs
    if len(tails) == 1:
        return [Run(prompt.start, tails[0].stop)]
    return [prompt, *(tail for tail in tails if tail.stop > tail.start)]


def _mask(runs: Sequence[Sequence[Run]], size: int, width: int, dtype: torch.dtype) -> Tensor:
    """Which tokens of padded rows are real, [R, T]; or, where tails share a prompt, the additive mask [R, 1, T, T]."""
    owner = torch.full((size,), -1, dtype=torch.int64)  # -1 padding, 0 prompt, 1.. the tail's number
    for segment in runs:
        for number, run in enumerate(segment):
            owner[run.start : run.stop] = number
    owner = owner.view(-1, width)
    if all(len(segment) == 2 for segment in runs):
        return (owner >= 0).long()
    query, key = owner[:, :, None], owner[:, None, :]
    seen = ((key == 0) | (key == query)) & torch.ones(width, width, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
