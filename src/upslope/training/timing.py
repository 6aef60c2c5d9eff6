"""The times of a step as metrics: seconds of each part, and tokens per second of each phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from upslope.stopwatch import span, stopwatch

_PHASES = {
    "prefill": ("prefill",),
    "decode": ("decode", "sample"),
    "update": ("score", "reference", "forward", "backward", "optimiser"),
}


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Within the context, seconds of every span by name; what is under none is `other`, so they sum to the whole."""
    with stopwatch() as seconds, span("other"):
        yield seconds


def time_metrics(seconds: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, float | str]:
    """`step_s`, `time/PART` in seconds, and `tokens_per_s/PHASE` of each phase that took time.

    tokens: how many tokens each phase computed: distinct prompts' for prefill, sampled ones for decode, those of the
    trained rows with their prompts for update. `step` is the sampled ones over the whole step.
    """
    step_s = sum(seconds.values())
    metrics: dict[str, float | str] = {"step_s": step_s}
    metrics |= {f"time/{name}": value for name, value in seconds.items()}
    for phase, parts in _PHASES.items():
        spent = sum(seconds.get(part, 0.0) for part in parts)
        if spent and tokens.get(phase):
            metrics[f"tokens_per_s/{phase}"] = tokens[phase] / spent
    if "decode" in tokens:
        metrics["tokens_per_s/step"] = tokens["decode"] / step_s
    return metrics
