"""The section `[algorithm]`: what a preset fills in, what overrides it, and which settings are at odds."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from upslope import naming
from upslope.presets import PRESETS
from upslope.settings import Fraction, Section


class AlgorithmSettings(Section):
    """The policy-gradient method, as settings. See docs/presets for each preset's formula."""

    preset: str = "ppo"
    baseline: Literal["none", "running_mean", "batch_mean", "group_mean", "leave_one_out", "critic"]
    credit: Literal["return", "row_return", "n_step", "gae"]
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    n_step: PositiveInt = 5
    surrogate: Literal["log_prob", "clip", "sequence_ratio", "sequence_clip", "sequence_clip_token", "cispo"]
    clip_low: PositiveFloat | None = None
    clip_high: PositiveFloat | None = None
    dual_clip: typing.Annotated[float, Field(gt=1.0)] | None = None
    scale: Literal["none", "batch_std", "group_std"]
    over: Literal["tokens", "rows", "rows_token_mean", "constant"]
    kl: Literal["off", "reward", "loss"] = "off"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_coef: NonNegativeFloat = 0.0
    kl_target: PositiveFloat | None = None
    kl_horizon: PositiveFloat = 10_000.0
    kl_stop: PositiveFloat | None = None
    value_coef: NonNegativeFloat = 0.1
    value_clip: PositiveFloat | None = None
    entropy_coef: NonNegativeFloat = 0.0
    importance_cap: PositiveFloat | None = None
    expected: bool = False
    dynamic_sampling: bool = False
    max_resamples: NonNegativeInt = 3
    overlong: Literal["end", "bootstrap", "mask", "penalty"] = "end"
    overlong_buffer: PositiveInt | None = None
    group_size: PositiveInt = 1
    epochs: PositiveInt = 1
    minibatches: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset", "ppo")
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(
                f"preset is {name!r}, which is not one of {', '.join(PRESETS)}{naming.nearest(name, list(PRESETS))}"
            )
        preset = dict(PRESETS[name])
        if values.get("kl") == "off":  # the preset's own coefficient and target go with its KL
            preset |= {"kl_coef": 0.0, "kl_target": None}
        return {**preset, **values}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for wrong, sentence in self._contradictions():
            if wrong:
                raise ValueError(sentence)
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        """Every way in which two settings can be at odds: whether they are, and the sentence that says so."""
        grouped = [f"baseline {self.baseline!r}"] if self.baseline in ("group_mean", "leave_one_out") else []
        grouped += ["scale 'group_std'"] if self.scale == "group_std" else []
        grouped += ["dynamic_sampling"] if self.dynamic_sampling else []
        critic = self.baseline == "critic"
        clipped = self.surrogate in ("clip", "sequence_clip", "sequence_clip_token")
        surrogate = f"surrogate is {self.surrogate!r}, which"
        return [
            (
                bool(grouped) and self.group_size < 2,
                f"group_size is {self.group_size}, but {grouped[0] if grouped else ''} needs at least 2",
            ),
            (
                self.expected and (self.surrogate not in ("log_prob", "clip") or bool(grouped)),
                "expected sums over all answers of a prompt by their probability, which needs surrogate 'log_prob' or "
                f"'clip', and neither {grouped[0] if grouped else 'groups'}",
            ),
            (
                self.expected and critic,
                "expected leaves no variance for a critic to lower: set baseline = 'batch_mean', credit = 'return'",
            ),
            (
                self.credit in ("n_step", "gae") and not critic,
                f"credit is {self.credit!r}, which needs baseline = 'critic', not {self.baseline!r}",
            ),
            (
                self.overlong == "bootstrap" and not critic,
                f"overlong is 'bootstrap', which needs baseline = 'critic', not {self.baseline!r}",
            ),
            (
                self.surrogate == "log_prob" and self.epochs * self.minibatches > 1,
                f"{surrogate} is on-policy: epochs and minibatches must be 1, not {self.epochs} and {self.minibatches}",
            ),
            (
                self.surrogate.startswith("sequence") and self.credit != "row_return",
                f"{surrogate} needs credit = 'row_return', not {self.credit!r}",
            ),
            (clipped and None in (self.clip_low, self.clip_high), f"{surrogate} needs clip_low and clip_high"),
            (self.surrogate == "cispo" and self.clip_high is None, f"{surrogate} needs clip_high"),
            (
                self.dual_clip is not None and self.surrogate != "clip",
                f"dual_clip is set, but it belongs to surrogate 'clip', not {self.surrogate!r}",
            ),
            (
                self.kl == "loss" and self.kl_estimator == "k1",
                "kl_estimator is 'k1', whose expected gradient in the loss is zero; use 'k2' or 'k3' there",
            ),
            (
                self.kl == "reward" and self.kl_estimator != "k1",
                f"kl_estimator is {self.kl_estimator!r}, whose gradient is wrong in the reward; use 'k1' there",
            ),
            (
                self.kl_target is not None and self.kl_coef == 0,
                "kl_target is set, but kl_coef is 0 and would stay 0; start it above 0",
            ),
            (
                self.kl == "off" and (self.kl_coef > 0 or self.kl_target is not None),
                "kl is 'off', so kl_coef must be 0 and kl_target 'none'; or set kl to 'reward' or 'loss'",
            ),
        ]

    @property
    def needs_critic(self) -> bool:
        """True when the policy carries a critic."""
        return self.baseline == "critic"

    @property
    def needs_reference(self) -> bool:
        """True when a frozen reference model is kept."""
        return self.kl != "off"
