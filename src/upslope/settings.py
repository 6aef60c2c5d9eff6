"""The sections of a recipe, in the order of the file; `[algorithm]` stands in algorithm.py.

A setting that is off is written `"none"`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Fraction = typing.Annotated[float, Field(ge=0.0, le=1.0)]
Decay = typing.Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Settings that belong together: nothing unknown, nothing non-finite, nothing changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _none_is_off(cls, values: Any) -> Any:
        """TOML has no null: "none" turns a setting off where it may be off."""
        if not isinstance(values, Mapping):
            return values
        return {k: None if v == "none" and _may_be_off(cls, k) else v for k, v in values.items()}


def _may_be_off(section: type[BaseModel], name: str) -> bool:
    field = section.model_fields.get(name)
    return field is not None and types.NoneType in typing.get_args(field.annotation)


class LoraSettings(Section):
    """Low-rank adapters by peft; the reference is then the model with its adapters off."""

    r: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_dropout: Fraction = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


class ModelSettings(Section):
    """Which model, what kind of policy it is, and how it is held. max_length: tokens a classifier or tagger reads;
    mark_case: an uncased model reads where capitals stood."""

    name: str = "smollm2-135m-instruct"
    kind: Literal["causal", "seq2seq", "classifier", "tagger"] = "causal"
    max_length: PositiveInt | None = None
    mark_case: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    critic: Literal["head", "separate"] = "head"
    lora: LoraSettings | None = None
    freeze: tuple[str, ...] = ()
    gradient_checkpointing: bool = False


class TaskSettings(Section):
    """Which task: a built-in name or the user's `package.module:name`, and its options."""

    name: str = "arithmetic"
    options: dict[str, Any] = {}

    @field_validator("options")
    @classmethod
    def _none_in_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {name: None if value == "none" else value for name, value in options.items()}


class RewardSettings(Section):
    """How rewards are computed. Functions given here (names, or tables with weight and options) replace the task's.
    noise_std: of Gaussian noise put into training's scores on purpose."""

    functions: tuple[str | dict[str, Any], ...] = ()
    noise_std: NonNegativeFloat = 0.0
    timeout_s: PositiveFloat = 30.0
    isolation: Literal["process", "none"] = "process"

    @model_validator(mode="before")
    @classmethod
    def _one_function(cls, values: Any) -> Any:
        """reward = "model:RUN" is short for its one function."""
        return {"functions": (values,)} if isinstance(values, str) else values


class SamplingSettings(Section):
    """The distribution that training samples from."""

    temperature: PositiveFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: PositiveFloat | None = None
    max_new_tokens: PositiveInt = 64
    stop: tuple[str, ...] = ()


class OptimizerSettings(Section):
    """AdamW; no decay on norms and biases. critic_lr is the value head's; a separate critic's trunk learns at lr."""

    lr: PositiveFloat = 1e-5
    critic_lr: PositiveFloat = 3e-4
    discriminator_lr: PositiveFloat = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr_fraction: Fraction = 0.1
    max_grad_norm: PositiveFloat = 1.0


class TrainingSettings(Section):
    """How long, and how large a step."""

    steps: PositiveInt = 100
    prompts_per_step: PositiveInt = 16
    micro_batch_tokens: PositiveInt = 1024
    max_train_s: PositiveFloat | None = None
    max_bad_steps: PositiveInt = 5
    seed: NonNegativeInt = 0


class SupervisedSettings(Section):
    """Supervised warm start on prompt/completion data (method = "supervised"). completion names the column to learn;
    class_weights "balanced" counts each label, or token, inversely to how often it is there."""

    completion: str = "completion"
    dropout: bool = True
    class_weights: Literal["none", "balanced"] = "none"


class RewardModelSettings(Section):
    """A reward model from judged completions (method = "reward_model"). top: places of a ranking that count."""

    loss: Literal["bradley_terry", "plackett_luce", "regression", "ordinal"] = "bradley_terry"
    centering_coef: NonNegativeFloat = 0.01
    top: PositiveInt | None = None


class PreferenceSettings(Section):
    """Learning from judged completions without a reward model (method = "preference").

    pairs: those of the data; "online", two samples of the policy that the task's reward judges; "self_play", the column
    `preferred` against a sample of the starting model (SPIN).
    """

    loss: Literal["dpo", "robust_dpo", "ipo", "kto", "orpo"] = "dpo"
    beta: PositiveFloat = 0.1
    flip_rate: typing.Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    pairs: Literal["data", "online", "self_play"] = "data"
    preferred: str = "completion"
    desirable_weight: NonNegativeFloat = 1.0
    undesirable_weight: NonNegativeFloat = 1.0

    @property
    def needs_reference(self) -> bool:
        """True when a frozen reference model is kept."""
        return self.loss != "orpo" or self.pairs == "self_play"


class InverseSettings(Section):
    """Inverse reinforcement learning from demonstrations (method = "inverse"). demonstrated names their column.

    discount and reward_price are IQ-Learn's. AIRL and GAIL train a discriminator (the policy's own model where off) of
    whole rows or of every token, and the policy by [algorithm].
    """

    learner: Literal["iq_learn", "airl", "gail"] = "iq_learn"
    discriminator: str | None = None
    level: Literal["row", "token"] = "row"
    demonstrated: str = "completion"
    discount: Fraction = 1.0
    reward_price: NonNegativeFloat = 0.1


class EvaluationSettings(Section):
    """How the task's metric is measured on held-out prompts: greedily, or sampled as in training."""

    every_steps: PositiveInt | None = None
    num_prompts: PositiveInt | None = None
    greedy: bool = True
    patience: PositiveInt | None = None
    min_gain: NonNegativeFloat = 0.0


class EngineSettings(Section):
    """What samples: how many rows at a time, in how much key-value cache, and what multiplies its matrices.

    kernels "auto" is the fastest exact one there is; "float16" halves the weights' memory traffic and is off in the
    second or third decimal of a log-probability (the run's gap_* metrics say by how much).
    """

    max_rows: PositiveInt = 128
    cache_gib: PositiveFloat = 2.0
    kernels: Literal["auto", "native", "onednn", "torch", "float16"] = "auto"


class RunSettings(Section):
    """The run folder: where it lies and what is kept in it."""

    folder: str | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    checkpoint_every_steps: PositiveInt | None = 50
    keep_last: PositiveInt = 2
    samples_per_step: NonNegativeInt = 4
    samples_per_evaluation: NonNegativeInt = 16
