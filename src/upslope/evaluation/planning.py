"""How many prompts a comparison needs, and how many plain averaging would have needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

from upslope.errors import DataError
from upslope.evaluation import student_t


@dataclass(frozen=True, slots=True)
class Plan:
    """Prompts for a difference to be found with this power: each model its own, or both the same (`paired`).

    Paired for scores that correlate by 0.5; a comparison that was made knows its own spread better.
    """

    effect: float
    power: float
    unpaired: int
    paired: int


def plan(values: Sequence[float], effect: float, *, power: float = 0.8, confidence: float = 0.95) -> Plan:
    """From one model's scores, one a prompt: how many prompts a comparison of two like it needs.

    The difference of two scores has the variance 2 s^2 (1 - correlation).
    Raises: DataError with fewer than two scores, or for an effect out of range.
    """
    if len(values) < 2:
        raise DataError(f"a plan needs the scores of two prompts at least, not of {len(values)}")
    sd = stdev(values)
    unpaired, paired = (
        prompts_to_detect(effect, sd=sd * math.sqrt(2.0 * (1.0 - correlation)), power=power, confidence=confidence)
        for correlation in (0.0, 0.5)
    )
    return Plan(effect, power, unpaired, paired)


def prompts_to_detect(effect: float, *, sd: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """n >= ((t_{1 - alpha/2} + t_power) sd / effect)^2: prompts on which a difference so large is found so often.

    sd is the standard deviation of one prompt's difference. For an unpaired comparison, where each model answers n
    prompts of its own, it is sqrt(sd_a^2 + sd_b^2).
    Raises: DataError for an effect, power or confidence out of range, or an sd that is not known (a constant reward).
    Source: Chow, Shao & Wang 2008, "Sample Size Calculations in Clinical Research", section 3.2.
    """
    _check(effect, power, confidence)
    if not math.isfinite(sd):
        raise DataError("the reward is constant, so its spread is not known and no number of prompts can be planned")
    if sd == 0.0:
        return 2
    n = (sum(map(NormalDist().inv_cdf, (0.5 + confidence / 2, power))) * sd / effect) ** 2
    for _ in range(5):  # t's quantiles hang on n, which hardly moves after the second time
        df = max(1.0, math.ceil(n) - 1.0)
        n = ((student_t.quantile(0.5 + confidence / 2, df) + student_t.quantile(power, df)) * sd / effect) ** 2
    return max(2, math.ceil(n))


def detectable(num_prompts: int, *, sd: float, power: float = 0.8, confidence: float = 0.95) -> float:
    """(t_{1 - alpha/2} + t_power) sd / sqrt(n): the smallest difference that so many prompts find so often."""
    _check(1.0, power, confidence)
    if num_prompts < 2:
        raise DataError(f"a difference can be told from chance on two prompts at least, not on {num_prompts}")
    df = num_prompts - 1.0
    return (student_t.quantile(0.5 + confidence / 2, df) + student_t.quantile(power, df)) * sd / math.sqrt(num_prompts)


def samples_unpaired(variance_a: float, variance_b: float, se: float) -> float:
    """2 (var_a + var_b) / se^2: samples of both models together by which plain averaging reaches a standard error.

    Plain averaging draws a prompt anew for every sample of either model. variance: of a model's single samples over
    prompts and answers.
    """
    return 2.0 * (variance_a + variance_b) / se**2


def _check(effect: float, power: float, confidence: float) -> None:
    if not effect > 0.0:
        raise DataError(f"the difference to detect is {effect}; it must be above 0")
    if not 0.5 <= power < 1.0 or not 0.5 <= confidence < 1.0:
        raise DataError(f"power {power} and confidence {confidence} must be from 0.5 to below 1")
