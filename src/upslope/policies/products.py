"""A Transformers model whose linear layers multiply by kernels.gemm."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from upslope.kernels import gemm


class GemmConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, whose weight [K, N] lies the other way round, by gemm.linear."""

    def forward(self, x: Tensor) -> Tensor:
        """y = x W + b [..., N] of x [..., K]."""
        return gemm.linear(x, self.weight.T, self.bias)


_BY_GEMM = {nn.Linear: gemm.Linear, Conv1D: GemmConv1D}


def use_gemm(model: nn.Module) -> None:
    """Have every plain linear layer of the model multiply by gemm.linear, where that differs from torch's product.

    Only the layers' class changes: parameters, names, copies and saved files stay as they are.
    """
    if gemm.backend() == "torch":
        return
    for module in model.modules():
        if type(module) in _BY_GEMM:
            module.__class__ = _BY_GEMM[type(module)]
