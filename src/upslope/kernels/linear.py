"""Linear layers for decoding behind one seam: weights are loaded once a version, and multiplied by few rows a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.errors import KernelError
from upslope.kernels.build import FLOATS, native, pointer, sizes

KERNELS = ("auto", "native", "onednn", "torch", "float16")


class Linear(Protocol):
    """y = x W^T + b, where W may be several weights stacked."""

    @property
    def nbytes(self) -> int:
        """Bytes of its own copy of the weights."""
        ...

    def load(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Take the weights [N_i, K] and biases [N_i] as they are now."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """y [m, N] of x [m, K]."""
        ...


class TorchLinear:
    """PyTorch's own product, on any device and in any dtype, with the weights that were given and no copy of them.

    With a dtype a copy of them is kept and multiplied in it, and what comes out is in the dtype of what went in.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self.nbytes = 0

    def load(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Keep references to the weights, or copies in `dtype`."""
        self._weights = [w.detach() if self.dtype is None else w.detach().to(self.dtype) for w in weights]
        self._biases = [b if b is None or self.dtype is None else b.detach().to(self.dtype) for b in biases]
        pairs = zip(self._weights, weights, strict=True)
        self.nbytes = sum(own.nbytes for own, given in pairs if own.dtype != given.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        pairs = zip(self._weights, self._biases, strict=True)
        outputs = [F.linear(x if self.dtype is None else x.to(self.dtype), w, b) for w, b in pairs]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)).to(x.dtype)


class OneDNNLinear:
    """oneDNN's float32 product with reordered weights, through PyTorch: needs no compiler."""

    nbytes = 0

    def load(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Reorder the weights once for oneDNN."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(_stack(weights).contiguous(), 16)
        self.nbytes = sum(weight.nbytes for weight in weights)
        self._bias = _stack_biases(weights, biases)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


class Float16Linear:
    """FBGEMM's product with weights kept in half precision and summed in float32: half the memory traffic, and
    log-probabilities that are off in the second or third decimal."""

    nbytes = 0

    def load(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Pack the weights once, in half precision."""
        weight = _stack(weights).contiguous()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, _stack_biases(weights, biases))
        self.nbytes = weight.nbytes // 2

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return y


class NativeLinear:
    """The compiled float32 product of native.cpp with packed weights."""

    def __init__(self) -> None:
        self._library = native()
        self._panel = int(self._library.panel_columns())
        self._packed = torch.empty(0, **FLOATS)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self._packed.nbytes

    def load(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Pack the weights once into panels."""
        if any(len(weight) % self._panel for weight in weights[:-1]):
            weights, biases = [_stack(weights)], [_stack_biases(weights, biases)]
        self._columns, self._inner = sum(map(len, weights)), weights[0].shape[1]
        floats = -(-self._columns // self._panel) * self._panel * self._inner
        if self._packed.numel() != floats:
            self._packed = torch.empty(floats, **FLOATS)
        start = 0
        for weight in weights:
            whole = weight.detach().contiguous()
            self._library.pack(pointer(whole), pointer(self._packed[start:]), *sizes(*whole.shape))
            start += whole.numel()
        self._bias = _stack_biases(weights, biases)

    def __call__(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self._inner
        x, y = x.contiguous(), torch.empty(len(x), self._columns, **FLOATS)
        bias = None if self._bias is None else pointer(self._bias)
        shape = sizes(len(x), self._columns, self._inner)
        self._library.linear(pointer(x), pointer(self._packed), bias, pointer(y), *shape)
        return y


def choose_kernel(wanted: str, *, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The kernel that decodes on this device in this dtype: what was asked for, or for "auto" the fastest exact one.

    Compiled kernels where there is a compiler, else oneDNN, else PyTorch's product. The second text says why where a
    slower one is taken for want of a compiler, of which a warning tells as well, and is empty else.
    Raises: KernelError when what was asked for cannot be had.
    """
    fits = device.type == "cpu" and dtype == torch.float32
    if wanted == "torch" or (wanted == "auto" and not fits):
        return "torch", ""
    if not fits:
        raise KernelError(f"engine.kernels = {wanted!r} computes in float32 on a CPU, not in {dtype} on {device}")
    if wanted == "float16" and "fbgemm" not in torch.backends.quantized.supported_engines:
        raise KernelError("engine.kernels = 'float16' needs FBGEMM, which this PyTorch does not have; use 'auto'")
    onednn = torch.backends.mkldnn.is_available()
    if wanted == "onednn" and not onednn:
        raise KernelError("engine.kernels = 'onednn', but this PyTorch has no oneDNN; use 'auto'")
    if wanted in ("native", "auto"):
        try:
            native()
        except KernelError as error:
            if wanted == "native":
                raise KernelError(f"engine.kernels = 'native', but {error}; use 'auto'") from error
            slower = "onednn" if onednn else "torch"
            warnings.warn(f"sampling takes the slower {slower} kernels, because {error}", stacklevel=2)
            return slower, str(error)
        return "native", ""
    return wanted, ""


def make_linear(kernel: str, *, dtype: torch.dtype | None = None) -> Linear:
    """An empty linear layer of the kernel; dtype is what "torch" computes in, where that is not the weights' own."""
    makers: dict[str, Callable[[], Linear]] = {
        "native": NativeLinear,
        "onednn": OneDNNLinear,
        "torch": lambda: TorchLinear(dtype),
        "float16": Float16Linear,
    }
    return makers[kernel]()


def _stack(weights: Sequence[Tensor]) -> Tensor:
    return weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])


def _stack_biases(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    if all(bias is None for bias in biases):
        return None
    pairs = zip(weights, biases, strict=True)
    return torch.cat([w.new_zeros(len(w)) if b is None else b.detach() for w, b in pairs])
