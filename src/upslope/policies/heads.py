"""Heads on a trunk: the critic's value head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ValueHead(nn.Module):
    """V(h) = w . h / rms(h) + b for hidden states h [..., H], in float32 whatever the trunk's dtype.

    A zero start makes the first advantages plain returns, instead of noise of the head's random weights. Dividing by
    the root mean square makes one learning rate serve every model: the scale of last hidden states differs by orders.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """V [...] of hidden states [..., H]."""
        hidden = hidden.to(self.linear.weight.dtype)
        values: Tensor = self.linear(F.rms_norm(hidden, hidden.shape[-1:]))
        return values.squeeze(-1)
