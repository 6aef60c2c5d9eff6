"""Packed rows, and the one recurrence under every estimator: x[t] = increment[t] + decay[t] x[t+1].

A packed tensor x [M] holds the actions of B rows end to end; num_actions [B] >= 1 says how many each row has, and
M is their sum. Half-precision and integer inputs are computed and returned in float32, float64 stays float64.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from upslope.errors import RecordError


def row_ends(num_actions: Tensor) -> Tensor:
    """Index [B] of each row's last action in a packed tensor [M]."""
    return num_actions.cumsum(0) - 1


def row_starts(num_actions: Tensor) -> Tensor:
    """Index [B] of each row's first action in a packed tensor [M]."""
    return num_actions.cumsum(0) - num_actions


def row_ids(num_actions: Tensor) -> Tensor:
    """Row [M] of each action."""
    return torch.arange(num_actions.shape[0], device=num_actions.device).repeat_interleave(num_actions)


def row_sum(x: Tensor, num_actions: Tensor) -> Tensor:
    """Sum [B] of x [M] over each row's actions."""
    return x.new_zeros(num_actions.shape[0]).index_add(0, row_ids(num_actions), x)


def row_decay(factor: float, num_actions: Tensor, *, like: Tensor) -> Tensor:
    """`factor` at every action [M] and 0 at the last action of each row, so that a scan restarts at every row."""
    decay = torch.full_like(like, factor, requires_grad=False)
    decay[row_ends(num_actions)] = 0.0
    return decay


def next_values(values: Tensor, num_actions: Tensor, bootstrap: Tensor) -> Tensor:
    """`V[t+1]`, [M]: the value of the next action of the row, and bootstrap [B] after the row's last action."""
    return values.roll(-1).index_copy(0, row_ends(num_actions), bootstrap)


def reverse_scan(increment: Tensor, decay: Tensor, *, max_length: int) -> Tensor:
    """x[t] = increment[t] + decay[t] x[t+1], x past the end being 0.

    increment, decay [M] of one float dtype, finite; no run of non-zero decays is longer than max_length - 1, which
    holds when decay is 0 at row ends and max_length is the longest row. ceil(log2(max_length)) doublings without a
    loop over time; differentiable in both; the numbers of a row do not depend on what it is packed with.
    Source: Hillis and Steele 1986, "Data parallel algorithms" (doi:10.1145/7902.7903).
    """
    size, width = increment.shape[0], 1
    x, product = increment, decay
    while width < min(max_length, size):
        x = _extend(x, product, x, width)
        product = product[:-width] * product[width:]
        width *= 2
    return x


def windowed_scan(increment: Tensor, decay: Tensor, *, window: int) -> Tensor:
    """x[t] = sum over k < window of decay[t] ... decay[t+k-1] increment[t+k]: the recurrence cut after `window` terms.

    increment, decay [M] of one float dtype, finite; window >= 1. At most 2 log2(window) steps: the window is doubled,
    and widened by one where the next binary digit of `window` is 1.
    """
    x, product, width = increment, decay, 1
    for digit in bin(min(window, increment.shape[0]))[3:]:
        x = _extend(x, product, x, width)
        product = product[:-width] * product[width:]
        width *= 2
        if digit == "1":
            x = _extend(increment, decay, x, 1)
            product = decay[:-width] * product[1:]
            width += 1
    return x


def _extend(x: Tensor, product: Tensor, later: Tensor, width: int) -> Tensor:
    """x[t] + product[t] later[t + width] where t + width exists, else x[t]."""
    return torch.cat((x[:-width] + product[: x.shape[0] - width] * later[width:], x[-width:]))


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common float dtype, float32 at least."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)


def check_packed(num_actions: Tensor, *, actions: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
    """Checks that named per-action [M] and per-row [B] tensors fit num_actions [B] and are finite.

    Raises: RecordError naming the tensor, and the row of the first value at fault.
    """
    if not num_actions.numel():
        raise RecordError("there are no rows to estimate from; every one of this batch was dropped before")
    if (num_actions < 1).any():
        row = int((num_actions < 1).nonzero()[0])
        raise RecordError(f"row {row} has no action; drop empty rows before estimating (collate does)")
    total = int(num_actions.sum())
    for name, tensor in actions.items():
        _check_shape(name, tensor, total, "one value per action")
        check_finite(name, tensor, row_ids(num_actions))
    for name, tensor in rows.items():
        _check_shape(name, tensor, num_actions.shape[0], "one value per row")
        check_finite(name, tensor)


def check_finite(name: str, x: Tensor, rows: Tensor | None = None) -> None:
    """Checks that x [n] is finite; rows [n] names the row of each value, by default its index.

    Raises: RecordError naming the tensor and the row of the first value at fault.
    """
    finite = x.isfinite()
    if not finite.all():
        index = int((~finite).nonzero()[0])
        row = index if rows is None else int(rows[index])
        raise RecordError(f"{name} holds {float(x[index])} in row {row}; drop that row or repair what produced it")


def _check_shape(name: str, tensor: Tensor, size: int, meaning: str) -> None:
    if tensor.shape != (size,):
        raise RecordError(f"{name} has shape {tuple(tensor.shape)} but num_actions asks for ({size},), {meaning}")
