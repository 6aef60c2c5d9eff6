"""A short name for a set of weights: whether a resumed run's base model is the same, and which step wrote a sample."""

from __future__ import annotations

import hashlib

from torch import nn

BASE = 4096
"""Weights of each parameter that tell one base model from another."""

STEP = 64
"""Those that tell the weights of one step from the next one's, which differ nearly everywhere."""


def fingerprint(module: nn.Module, *, samples: int) -> str:
    """A digest over names, shapes and so many evenly spaced weights of every parameter (all, where it has fewer)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        flat = parameter.detach().flatten()
        picked = flat[:: max(1, flat.numel() // samples)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()
