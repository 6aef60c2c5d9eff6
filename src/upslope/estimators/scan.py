"""Packed rows, and the one recurrence under every estimator: x[t] = increment[t] + decay[t] x[t+1].

A packed tensor x [M] holds the actions of B rows end to end; num_actions [B] >= 1 says how many each row has, and
M is their sum. Half-precision and integer inputs are computed and returned in float32, float64 stays float64.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

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
    return values.roll(-1).index_copy_(0, row_ends(num_actions), bootstrap)


def reverse_scan(increment: Tensor, decay: Tensor, *, max_length: int) -> Tensor:
    """x[t] = increment[t] + decay[t] x[t+1], x past the end being 0.

    increment, decay [M] of one float dtype, finite; no run of non-zero decays is longer than max_length - 1, which
    holds when decay is 0 at row ends and max_length is the longest row. ceil(log2(max_length)) doublings without a
    loop over time; differentiable in both; the numbers of a row do not depend on what it is packed with.
    Source: Hillis and Steele 1986, "Data parallel algorithms" (doi:10.1145/7902.7903).
    """
    x: Tensor = _ReverseScan.apply(increment, decay, max_length)  # type: ignore[no-untyped-call]
    return x


class _ReverseScan(torch.autograd.Function):
    """The scan and its gradient, a scan from the other end: what reaches x[t] is its own and decay[t-1] of x[t-1]'s."""

    @staticmethod
    def forward(ctx: Any, increment: Tensor, decay: Tensor, max_length: int) -> Tensor:
        x = _doubled(increment, decay, reach=min(max_length, increment.shape[0]))
        ctx.save_for_backward(decay, x)
        ctx.max_length = max_length
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        decay, x = ctx.saved_tensors
        before = decay.roll(1).flip(0)
        reached = reverse_scan(grads[0].flip(0), before, max_length=ctx.max_length).flip(0)
        if not ctx.needs_input_grad[1]:
            return reached, None, None
        later = x.roll(-1)
        later[-1:] = 0.0
        return reached, reached * later, None


def _doubled(x: Tensor, product: Tensor, *, reach: int) -> Tensor:
    """The scan where no x[t] needs more than `reach` increments; each doubling of `width` looks twice as far ahead.

    product[t] = decay[t] ... decay[t + width - 1]. Two pairs of buffers take turns, in one block of memory: at a
    million actions fresh memory at every doubling would cost more than the arithmetic.
    """
    size, width = x.shape[0], 1
    buffers = itertools.cycle(x.new_empty(2, 2, size))
    while width < reach:
        wider, wider_product = next(buffers)
        ahead, twice = size - width, max(size - 2 * width, 0)
        torch.addcmul(x[:ahead], product[:ahead], x[width:], out=wider[:ahead])
        wider[ahead:] = x[ahead:]
        product = torch.mul(product[:twice], product[width:][:twice], out=wider_product[:twice])
        x, width = wider, 2 * width
    return x.clone()  # out of the block, which a view would keep alive


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
        check_finite(name, tensor, num_actions)
    for name, tensor in rows.items():
        _check_shape(name, tensor, num_actions.shape[0], "one value per row")
        check_finite(name, tensor)


def check_finite(name: str, x: Tensor, num_actions: Tensor | None = None) -> None:
    """Checks that x is finite: per action [M] of rows of num_actions [B], or without them per row [B].

    Raises: RecordError naming the tensor and the row of the first value at fault.
    """
    if x.sum().isfinite():  # one reading of x; a sum that overflows says nothing, so each value is then looked at
        return
    finite = x.isfinite()
    if not finite.all():
        index = int((~finite).nonzero()[0])
        row = index if num_actions is None else int(row_ids(num_actions)[index])
        raise RecordError(f"{name} holds {float(x[index])} in row {row}; drop that row or repair what produced it")


def _check_shape(name: str, tensor: Tensor, size: int, meaning: str) -> None:
    if tensor.shape != (size,):
        raise RecordError(f"{name} has shape {tuple(tensor.shape)} but num_actions asks for ({size},), {meaning}")
