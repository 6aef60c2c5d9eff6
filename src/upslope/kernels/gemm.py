"""Matrix products for training: oneDNN where torch's own BLAS runs at half the machine's speed.

torch multiplies fp32 matrices with MKL, which on AMD processors keeps to 256-bit instructions. Where they have AVX-512,
oneDNN, which torch ships as well, is 2.1 to 2.5 times as fast (Zen 5, two cores: 430 against 190 GFLOP/s). It reads
transposed views as they are, so the forward product and both of the backward pass need no copy. On Intel, and where
there is no AVX-512, the two are equal and torch's own product stays.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 64  # oneDNN compiles code for every shape it meets and keeps it: rows are best filled up to a multiple of this
_SMALLEST = 1 << 22  # multiply-adds; below, the call itself costs more than the product gains


@functools.cache
def backend() -> str:
    """ "onednn" or "torch": what multiplies large fp32 matrices on the CPU.

    Decided by the processor and by what this torch is built with.
    """
    stock = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return "onednn" if stock and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd() else "torch"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x [..., K], weight [N, K] (any strides) and bias [N]; [..., N]. Not differentiable."""
    if _by_onednn(x, weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b as F.linear gives it, differentiable; all three of its products are `product`s."""
    if torch.is_autocast_enabled(x.device.type) or not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return product(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """y = x W^T + b [..., N] of input x [..., K]."""
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad, weight.T) if for_x else None,
            product(flat.T, x.flatten(0, -2).T) if for_weight else None,
            flat.sum(0) if for_bias else None,
        )


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dim() > 1
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * weight.shape[0] >= _SMALLEST
        and backend() == "onednn"
    )


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux: torch's own product
        return False
