"""Dropout on and off without leaving train mode, which gradient checkpointing needs while scoring needs no noise."""

from __future__ import annotations

from torch import nn


class Dropouts:
    """Every probability of leaving something out: nn.Dropout's p, and the plain float attributes of attention layers
    (dropout) and of encoders and decoders (layerdrop)."""

    def __init__(self, module: nn.Module) -> None:
        self._found: list[tuple[nn.Module, str, float]] = []
        self.acting = False
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                self._found.append((part, "p", part.p))
            self._found += [
                (part, name, value)
                for name, value in vars(part).items()
                if ("dropout" in name or name == "layerdrop") and isinstance(value, float)
            ]

    def set(self, enabled: bool) -> None:
        """The model's own probabilities, or zero everywhere."""
        self.acting = enabled and any(value > 0 for _, _, value in self._found)
        for part, name, value in self._found:
            setattr(part, name, value if enabled else 0.0)
