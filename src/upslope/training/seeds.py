"""Every random number of a run follows from its seed and what it is for, so that a resumed run draws the same ones."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ("rollout", step): independent of every other purpose."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def data_order(seed: int, *, position: int, count: int, size: int) -> list[int]:
    """Indices at positions [position, position + count) of the endless stream of shuffled passes over `size` items."""
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(position + len(indices), size)
        order = torch.randperm(size, generator=generator(seed, "data", epoch)).tolist()
        indices += order[offset : offset + count - len(indices)]
    return indices
