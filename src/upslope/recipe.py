"""Every setting of a run, validated: one TOML file in, the resolved file out."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ValidationError, model_validator

from upslope import naming
from upslope.algorithm import AlgorithmSettings
from upslope.errors import RecipeError
from upslope.presets import PRESETS
from upslope.settings import (
    EngineSettings,
    EvaluationSettings,
    InverseSettings,
    ModelSettings,
    OptimizerSettings,
    PreferenceSettings,
    RewardModelSettings,
    RewardSettings,
    RunSettings,
    SamplingSettings,
    Section,
    SupervisedSettings,
    TaskSettings,
    TrainingSettings,
)

_ONLY_WITH = (
    ("reward_model", "top", "loss", ("plackett_luce",)),
    ("reward_model", "centering_coef", "loss", ("bradley_terry", "plackett_luce")),
    ("preference", "flip_rate", "loss", ("dpo", "robust_dpo")),
    ("preference", "desirable_weight", "loss", ("kto",)),
    ("preference", "undesirable_weight", "loss", ("kto",)),
    ("preference", "preferred", "pairs", ("self_play",)),
    ("inverse", "discount", "learner", ("iq_learn",)),
    ("inverse", "reward_price", "learner", ("iq_learn",)),
    ("inverse", "discriminator", "learner", ("airl", "gail")),
    ("inverse", "level", "learner", ("airl", "gail")),
)
"""(section, setting, other setting of the section, what that must be for the first to act)."""


class Recipe(Section):
    """Every setting of a run.

    Raises: RecipeError from `load` and `resolve`, one sentence naming the setting, what was given and what is allowed.
    """

    method: Literal["policy_gradient", "supervised", "reward_model", "preference", "inverse"] = "policy_gradient"
    model: ModelSettings = ModelSettings()
    task: TaskSettings = TaskSettings()
    reward: RewardSettings = RewardSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings.model_validate({})
    sampling: SamplingSettings = SamplingSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    supervised: SupervisedSettings = SupervisedSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    preference: PreferenceSettings = PreferenceSettings()
    inverse: InverseSettings = InverseSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    engine: EngineSettings = EngineSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        prompts, pieces = self.training.prompts_per_step, self.algorithm.minibatches
        if (self.method == "policy_gradient" or self.adversarial) and prompts % pieces:
            raise ValueError(
                f"training.prompts_per_step is {prompts}, which algorithm.minibatches = {pieces} must divide"
            )
        self._check_method()
        if self.evaluation.patience is not None and self.evaluation.every_steps is None:
            raise ValueError("evaluation.patience is set, so evaluation.every_steps must be set as well")
        if self.sampling.top_p is not None and self.sampling.top_p > 1:
            raise ValueError(f"sampling.top_p is {self.sampling.top_p}, but a probability mass is at most 1")
        if self.algorithm.overlong == "penalty" and self.overlong_buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"algorithm.overlong_buffer is {self.overlong_buffer}, but must be at most "
                f"sampling.max_new_tokens = {self.sampling.max_new_tokens}"
            )
        return self

    def _check_method(self) -> None:
        """What the method asks of the model, and that no setting was meant for another one: beta above all, which in
        other libraries is a KL coefficient."""
        for name in ("reward_model", "preference", "inverse"):
            section = getattr(self, name)
            if self.method != name and (changed := _changed(section)):
                hint = "; a KL coefficient is algorithm.kl_coef" if changed[0] == "beta" else ""
                raise ValueError(f"{name}.{changed[0]} is set, but method is {self.method!r}, not {name!r}{hint}")
        for section, name, by, choices in _ONLY_WITH:
            settings = getattr(self, section)
            if getattr(settings, by) not in choices and name in _changed(settings):
                known = " or ".join(map(repr, choices))
                raise ValueError(f"{section}.{name} is set, but belongs to {by} {known}, not {getattr(settings, by)!r}")
        kind = self.model.kind
        if self.method == "reward_model" and kind not in ("causal", "classifier"):
            raise ValueError(f"model.kind is {kind!r}, but a reward model is made of a 'causal' or 'classifier' one")
        if self.method == "preference" and kind not in ("causal", "seq2seq"):
            raise ValueError(f"model.kind is {kind!r}, but preferences are learned by a 'causal' or 'seq2seq' one")
        if self.method == "inverse" and kind != "causal":
            raise ValueError(f"model.kind is {kind!r}, but rewards are recovered from a 'causal' one")

    @property
    def adversarial(self) -> bool:
        """True where a discriminator is trained against the policy."""
        return self.method == "inverse" and self.inverse.learner != "iq_learn"

    @property
    def overlong_buffer(self) -> int:
        """Tokens before max_new_tokens over which the overlong penalty grows; a fifth of it where not set (DAPO's)."""
        return self.algorithm.overlong_buffer or max(1, self.sampling.max_new_tokens // 5)

    @staticmethod
    def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of a TOML file, with overrides by dotted or unique name laid over it."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {str(path)!r} is not TOML: {error}") from error
        return Recipe.resolve(values, overrides)

    @staticmethod
    def resolve(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of nested settings, with overrides by dotted ("optimizer.lr") or unique ("lr") name.

        Where an override names another preset, the settings that merely spell out the old one give way to it; those
        that differed from the old preset stay.
        """
        merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        placed = {naming.full_name(Recipe, name): value for name, value in (overrides or {}).items()}
        if "algorithm.preset" in placed and isinstance(merged.get("algorithm"), Mapping):
            merged["algorithm"] = _own_settings(merged["algorithm"], placed["algorithm.preset"])
        for name, value in placed.items():
            naming.place(merged, name, value)
        try:
            return Recipe.model_validate(merged)
        except ValidationError as error:
            raise RecipeError(naming.sentence(Recipe, error)) from None

    def to_toml(self) -> str:
        """The resolved recipe as TOML: every setting, those that are off as "none"."""
        return tomli_w.dumps(_without_null(self.model_dump()))


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` from a command line -> ("a.b", value); the value is read as TOML, or as plain text where it is none.

    Raises: RecipeError when there is no equals sign.
    """
    name, equals, raw = text.partition("=")
    if not equals:
        raise RecipeError(f"--set {text!r} has no value; write --set section.setting=value")
    try:
        return name.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), raw.strip()


def _changed(section: BaseModel) -> list[str]:
    """The settings of a section that are not their defaults."""
    return [name for name, field in type(section).model_fields.items() if getattr(section, name) != field.default]


def _own_settings(section: Mapping[str, Any], new_preset: Any) -> dict[str, Any]:
    """The settings of an algorithm section that are not its preset's own."""
    old_preset = section.get("preset", "ppo")
    if new_preset == old_preset or old_preset not in PRESETS:
        return dict(section)
    old = AlgorithmSettings.model_validate({"preset": old_preset}).model_dump()
    return {k: v for k, v in section.items() if _without_null(v) != _without_null(old.get(k))}


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_null(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_null(v) for v in value]
    return "none" if value is None else value
