"""What training gained on the held-out prompts, from the evaluations that a run logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from upslope.evaluation.intervals import Interval, mean_interval, paired_gain


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The metric's mean after one step, with its 95% interval over num_prompts prompts."""

    step: int
    num_prompts: int
    interval: Interval


@dataclass(frozen=True, slots=True)
class Gain:
    """Means at the first and the last evaluation and of the difference, over the prompts that both could score."""

    before: HeldOut
    after: HeldOut
    gain: Interval


def curve(evaluations: Sequence[Mapping[str, Any]]) -> list[HeldOut]:
    """The metric at every evaluation: events of kind "evaluate", in order."""
    return [_mean(event["step"], tuple(event["values"].values())) for event in evaluations if event["values"]]


def gain(evaluations: Sequence[Mapping[str, Any]]) -> Gain | None:
    """First against last of events of kind "evaluate"; None with fewer than two, or without a common prompt."""
    if len(evaluations) < 2:
        return None
    first, last = evaluations[0], evaluations[-1]
    common = sorted(first["values"].keys() & last["values"].keys())
    if not common:
        return None
    before, after = (tuple(event["values"][prompt] for prompt in common) for event in (first, last))
    return Gain(_mean(first["step"], before), _mean(last["step"], after), _paired(before, after))


def _mean(step: int, values: tuple[float, ...]) -> HeldOut:
    return HeldOut(step, len(values), _interval(values))


# a page that is open asks again after every step, and 10,000 resamples cost a tenth of a second
@lru_cache(maxsize=1024)
def _interval(values: tuple[float, ...]) -> Interval:
    return mean_interval(values)


@lru_cache(maxsize=1024)
def _paired(before: tuple[float, ...], after: tuple[float, ...]) -> Interval:
    return paired_gain(before, after)
