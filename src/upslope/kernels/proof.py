"""Compiled kernels against PyTorch's numbers, before they are used: a compiler can be wrong."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from upslope.errors import KernelError
from upslope.kernels.attention import PAGE, Heads, LayerCache, Places, attend_native, attend_torch
from upslope.kernels.build import FLOATS, pointer, sizes

_ROWS = (1, 7, 29)  # tiles of every height up to the widest registers' 12, alone and behind others
_GROUPS = (1, 2, 3, 4, 5)  # query heads of a key-value head: each count that is worked on together, and one beyond
_POSITIONS = (0, PAGE - 1, PAGE, 2 * PAGE + 5)


def prove(library: ctypes.CDLL) -> None:
    """Products and attention of a freshly loaded library, on small odd shapes.

    Raises: KernelError naming what differs from PyTorch's by more than 1e-4.
    """
    generator = torch.Generator().manual_seed(0)
    for rows in _ROWS:
        if not _linear_agrees(library, rows, generator):
            raise KernelError("the compiled kernels compute wrong products")
    for group in _GROUPS:
        for window in (None, 5):
            if not _attention_agrees(library, group, window, generator):
                raise KernelError("the compiled kernels compute wrong attention")


def _linear_agrees(library: ctypes.CDLL, rows: int, generator: torch.Generator) -> bool:
    columns, inner = 37, 19
    x, weight, bias = (_random(shape, generator) for shape in ((rows, inner), (columns, inner), (columns,)))
    panel = library.panel_columns()
    packed, y = torch.empty(-(-columns // panel) * panel * inner, **FLOATS), torch.empty(rows, columns, **FLOATS)
    library.pack(pointer(weight), pointer(packed), *sizes(columns, inner))
    library.linear(pointer(x), pointer(packed), pointer(bias), pointer(y), *sizes(rows, columns, inner))
    return torch.allclose(y, x @ weight.T + bias, atol=1e-4)


def _attention_agrees(library: ctypes.CDLL, group: int, window: int | None, generator: torch.Generator) -> bool:
    heads, rows = Heads(queries=2 * group, keys=2, dim=20, scale=0.3), len(_POSITIONS)
    pages = torch.randperm(3 * rows, generator=generator).view(rows, 3)
    places = Places(pages, torch.tensor(_POSITIONS))
    keys = _random((pages.numel(), heads.keys, heads.dim, PAGE), generator)
    values = _random((pages.numel(), heads.keys, PAGE, heads.width), generator)
    qkv = _random((rows, heads.features), generator)
    angles = _random((rows, heads.dim // 4), generator).repeat(1, 2)  # half of the features turn
    rotation = angles.cos(), angles.sin()
    theirs = attend_torch(qkv.clone(), rotation, LayerCache(keys.clone(), values.clone()), places, heads, window)
    ours = attend_native(library, qkv, rotation, LayerCache(keys, values), places, heads, window)
    return torch.allclose(ours, theirs, atol=1e-4)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, **FLOATS)
