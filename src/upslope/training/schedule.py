"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["constant", "linear", "cosine"],
    final_fraction: float,
) -> float:
    """What the learning rate is multiplied by at `step`, counted from 1.

    Rises linearly to 1 over warmup_steps, then stays, or falls to final_fraction at total_steps along a line or a half
    cosine.
    """
    if step <= warmup_steps:
        return step / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    shape = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_fraction + (1.0 - final_fraction) * shape
