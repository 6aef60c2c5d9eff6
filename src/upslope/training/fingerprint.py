"""A short name for a set of weights, to notice that a base model has changed between a run and its resumption."""

from __future__ import annotations

import hashlib

from torch import nn

_SAMPLES = 4096


def fingerprint(module: nn.Module) -> str:
    """A digest over names, shapes and up to 4,096 evenly spaced weights of every parameter."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        flat = parameter.detach().flatten()
        picked = flat[:: max(1, flat.numel() // _SAMPLES)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()
