"""The records that flow: Prompt -> Rollout -> Batch -> Scores. All frozen; a batch holds actions only, packed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from upslope.errors import RecordError

Message = Mapping[str, str]
StopReason = Literal["eos", "stop", "length", "action"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem of a task.

    id is stable across runs: with the seed it decides the random numbers of the prompt's samples. content is
    plain text or a chat (messages of role and content). tokens is empty until a policy encodes the prompt.
    columns holds the remaining fields of the data line (the answer, say), handed to reward functions by name. origin
    is the file and line it was read from, where it was.
    """

    id: int
    content: str | tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    origin: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """What messages call the prompt: `prompt 7 (train.jsonl:8)`."""
        return f"prompt {self.id} ({self.origin})" if self.origin else f"prompt {self.id}"

    @property
    def text(self) -> str:
        """The prompt as one string: plain content as it is, a chat as `role: content` lines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.content)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished row: what the model read, what it decided, and how it ended.

    tokens [n] is everything read, actions included; actions [m] are the decisions, decided by the outputs at
    positions [m]; engine_logprobs [m] in nats, as the sampling engine reported them. rewards [m] is empty until a
    task scored the row; `failure` then says why it could not (such rows are dropped and counted, never scored 0).
    """

    prompt: Prompt
    group: int
    sample: int
    tokens: tuple[int, ...]
    actions: tuple[int, ...]
    positions: tuple[int, ...]
    engine_logprobs: tuple[float, ...]
    text: str
    stop_reason: StopReason
    version: int = 0
    rewards: tuple[float, ...] = ()
    failure: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    source: tuple[int, ...] = ()

    @property
    def terminated(self) -> bool:
        """True where the row ended by itself; False where it was cut at a length or time limit."""
        return self.stop_reason != "length"

    @property
    def score(self) -> float:
        """Undiscounted sum of the row's rewards."""
        return math.fsum(self.rewards)

    def replace(self, **changes: Any) -> Rollout:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a policy says of a batch: logprobs [M] and entropy [M] in nats, values [M], bootstrap [B] (V at each
    row's last token, whether or not the row terminated)."""

    logprobs: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None
    bootstrap: Tensor | None = None


_PER_TOKEN = ("tokens",)
_PER_ACTION = (
    "actions",
    "positions",
    "engine_logprobs",
    "old_logprobs",
    "ref_logprobs",
    "old_values",
    "rewards",
    "advantages",
    "returns",
)
_PER_ROW = ("row_lengths", "num_actions", "bootstrap", "terminated", "group", "version", "source_lengths")


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rollouts: N tokens and M actions of B rows, end to end, without padding or masks.

    tokens [N], row_lengths [B]; actions, positions [M] (positions are row-relative: for a causal model the token
    before the action), num_actions [B] >= 1; engine_logprobs, old_logprobs, ref_logprobs, old_values, rewards,
    advantages, returns [M]; bootstrap [B] is V at the row's last token, 0 where terminated [B]; rows of one prompt
    share group [B]; version [B] sampled the row. source [S] and source_lengths [B] only for encoder-decoders.
    """

    tokens: Tensor
    row_lengths: Tensor
    actions: Tensor
    positions: Tensor
    num_actions: Tensor
    engine_logprobs: Tensor
    terminated: Tensor
    group: Tensor
    version: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    rewards: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    bootstrap: Tensor | None = None
    source: Tensor | None = None
    source_lengths: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """B."""
        return self.num_actions.shape[0]

    def __len__(self) -> int:
        """B, the number of rows."""
        return self.num_rows

    def replace(self, **changes: Any) -> Batch:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapped: dict[str, Any] = {name: v if v is None else function(name, v) for name, v in values.items()}
        return Batch(**mapped)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._map(lambda _, value: value.to(device))

    def select(self, rows: Tensor | Sequence[int]) -> Batch:
        """The given rows, in the given order. Positions are row-relative, so nothing is re-indexed."""
        rows = torch.as_tensor(rows, dtype=torch.int64, device=self.num_actions.device)
        action_index = ragged_index(self.num_actions, rows)
        token_index = ragged_index(self.row_lengths, rows)
        source_index = None if self.source_lengths is None else ragged_index(self.source_lengths, rows)

        def pick(name: str, value: Tensor) -> Tensor:
            if name in _PER_ROW:
                return value[rows]
            if name == "source":
                return value[source_index]
            return value[token_index] if name in _PER_TOKEN else value[action_index]

        return self._map(pick)

    @staticmethod
    def concatenate(batches: Sequence[Batch]) -> Batch:
        """Rows of all batches, in order. A field is kept where every batch has it.

        Raises: RecordError when there is nothing to concatenate.
        """
        if not batches:
            raise RecordError("there is no batch to concatenate")
        merged: dict[str, Any] = {}
        for f in dataclasses.fields(Batch):
            parts = [getattr(batch, f.name) for batch in batches]
            merged[f.name] = None if any(part is None for part in parts) else torch.cat(parts)
        return Batch(**merged)

    def split_rows(self, packed: Tensor) -> list[Tensor]:
        """A per-action tensor [M] cut into one tensor a row."""
        return list(packed.split(self.num_actions.tolist()))


def ragged_index(lengths: Tensor, rows: Tensor) -> Tensor:
    """Flat indices of the elements of the given rows of a packed tensor whose rows have the given lengths [B]."""
    starts = lengths.cumsum(0) - lengths
    picked = lengths[rows]
    offsets = torch.arange(int(picked.sum()), device=lengths.device)
    row_starts = picked.cumsum(0) - picked
    return offsets + (starts[rows] - row_starts).repeat_interleave(picked)


def pack(padded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, T] and a mask [B, T] of its actions -> packed x [M] and num_actions [B].

    What stands at masked slots (NaN included) is never read.
    """
    mask = mask.bool()
    return padded[mask], mask.sum(1)


def unpack(packed: Tensor, num_actions: Tensor, *, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Packed x [M] and num_actions [B] -> x [B, T], right-padded with fill, and the mask [B, T] of real slots."""
    width = int(num_actions.max()) if num_actions.numel() else 0
    mask = torch.arange(width, device=packed.device)[None] < num_actions[:, None]
    padded = packed.new_full(mask.shape, fill)
    padded[mask] = packed
    return padded, mask


def collate(rollouts: Sequence[Rollout]) -> tuple[Batch, int]:
    """Rollouts -> (Batch, number of empty rows dropped). Rows without an action carry nothing to learn from.

    Rewards are included when every row has them.

    Raises: RecordError naming the row when lengths disagree, a position lies outside its row, an id is negative,
    or a log-probability or reward is not finite; and when no row is left.
    """
    kept = [rollout for rollout in rollouts if rollout.actions]
    if not kept:
        raise RecordError(f"none of {len(rollouts)} rollouts holds an action, so there is nothing to train on")
    for index, rollout in enumerate(kept):
        _validate(rollout, index)
    scored = all(rollout.rewards for rollout in kept)
    has_source = all(rollout.source for rollout in kept)
    batch = Batch(
        tokens=_flat([r.tokens for r in kept]),
        row_lengths=torch.tensor([len(r.tokens) for r in kept]),
        actions=_flat([r.actions for r in kept]),
        positions=_flat([r.positions for r in kept]),
        num_actions=torch.tensor([len(r.actions) for r in kept]),
        engine_logprobs=_flat([r.engine_logprobs for r in kept], torch.float32),
        terminated=torch.tensor([r.terminated for r in kept]),
        group=torch.tensor([r.group for r in kept]),
        version=torch.tensor([r.version for r in kept]),
        rewards=_flat([r.rewards for r in kept], torch.float32) if scored else None,
        source=_flat([r.source for r in kept]) if has_source else None,
        source_lengths=torch.tensor([len(r.source) for r in kept]) if has_source else None,
    )
    return batch, len(rollouts) - len(kept)


def _flat(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=dtype)


def _validate(rollout: Rollout, index: int) -> None:
    where = f"rollout {index} (prompt {rollout.prompt.id}, sample {rollout.sample})"
    counts = {
        "positions": len(rollout.positions),
        "engine_logprobs": len(rollout.engine_logprobs),
        "rewards": len(rollout.rewards) or len(rollout.actions),
    }
    for name, count in counts.items():
        if count != len(rollout.actions):
            raise RecordError(f"{where} has {len(rollout.actions)} actions but {count} {name}")
    if min(rollout.positions) < 0 or max(rollout.positions) >= len(rollout.tokens):
        raise RecordError(f"{where} has a position outside its {len(rollout.tokens)} tokens")
    if any(b <= a for a, b in zip(rollout.positions, rollout.positions[1:], strict=False)):
        raise RecordError(f"{where} has positions that do not increase")
    if min(rollout.tokens) < 0 or min(rollout.actions) < 0:
        raise RecordError(f"{where} holds a negative token or action id")
    for name in ("engine_logprobs", "rewards"):
        if not all(math.isfinite(value) for value in getattr(rollout, name)):
            raise RecordError(f"{where} has a non-finite value in {name}")
