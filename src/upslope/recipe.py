"""Every setting of a run, validated: one TOML file in, the resolved file out.

The sections stand below in the order of the file. `algorithm.preset` fills the algorithm section, each setting of which
can be overridden. A setting that is off is written `"none"`.
"""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from upslope import naming
from upslope.errors import RecipeError
from upslope.presets import PRESETS

Fraction = typing.Annotated[float, Field(ge=0.0, le=1.0)]
Decay = typing.Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
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


class LoraSettings(_Section):
    """Low-rank adapters by peft; the reference is then the model with its adapters off."""

    r: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_dropout: Fraction = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


class ModelSettings(_Section):
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


class TaskSettings(_Section):
    """Which task: a built-in name or the user's `package.module:name`, and its options."""

    name: str = "arithmetic"
    options: dict[str, Any] = {}

    @field_validator("options")
    @classmethod
    def _none_in_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {name: None if value == "none" else value for name, value in options.items()}


class RewardSettings(_Section):
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


class SamplingSettings(_Section):
    """The distribution that training samples from."""

    temperature: PositiveFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: PositiveFloat | None = None
    max_new_tokens: PositiveInt = 64
    stop: tuple[str, ...] = ()


class AlgorithmSettings(_Section):
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


class OptimizerSettings(_Section):
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


class TrainingSettings(_Section):
    """How long, and how large a step."""

    steps: PositiveInt = 100
    prompts_per_step: PositiveInt = 16
    micro_batch_tokens: PositiveInt = 1024
    max_train_s: PositiveFloat | None = None
    max_bad_steps: PositiveInt = 5
    seed: NonNegativeInt = 0


class SupervisedSettings(_Section):
    """Supervised warm start on prompt/completion data (method = "supervised"). completion names the column to learn;
    class_weights "balanced" counts each label, or token, inversely to how often it is there."""

    completion: str = "completion"
    dropout: bool = True
    class_weights: Literal["none", "balanced"] = "none"


class RewardModelSettings(_Section):
    """A reward model from judged completions (method = "reward_model"). top: places of a ranking that count."""

    loss: Literal["bradley_terry", "plackett_luce", "regression", "ordinal"] = "bradley_terry"
    centering_coef: NonNegativeFloat = 0.01
    top: PositiveInt | None = None


class PreferenceSettings(_Section):
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


class InverseSettings(_Section):
    """Inverse reinforcement learning from demonstrations (method = "inverse"). demonstrated names their column.

    discount and reward_price are IQ-Learn's. AIRL and GAIL train a discriminator (the policy's own model where off) and
    the policy by [algorithm].
    """

    learner: Literal["iq_learn", "airl", "gail"] = "iq_learn"
    discriminator: str | None = None
    demonstrated: str = "completion"
    discount: Fraction = 1.0
    reward_price: NonNegativeFloat = 0.1


class EvaluationSettings(_Section):
    """How the task's metric is measured on held-out prompts: greedily, or sampled as in training."""

    every_steps: PositiveInt | None = None
    num_prompts: PositiveInt | None = None
    greedy: bool = True
    patience: PositiveInt | None = None
    min_gain: NonNegativeFloat = 0.0


class EngineSettings(_Section):
    """What samples: how many rows at a time, in how much key-value cache, and what multiplies its matrices.

    kernels "auto" is the fastest exact one there is; "float16" halves the weights' memory traffic and is off in the
    second or third decimal of a log-probability (the run's gap_* metrics say by how much).
    """

    max_rows: PositiveInt = 128
    cache_gib: PositiveFloat = 2.0
    kernels: Literal["auto", "native", "onednn", "torch", "float16"] = "auto"


class RunSettings(_Section):
    """The run folder: where it lies and what is kept in it."""

    folder: str | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    checkpoint_every_steps: PositiveInt | None = 50
    keep_last: PositiveInt = 2
    samples_per_step: NonNegativeInt = 4
    samples_per_evaluation: NonNegativeInt = 16


class Recipe(_Section):
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
                hint = "; a KL coefficient is algorithm.kl_coef" if changed == "beta" else ""
                raise ValueError(f"{name}.{changed} is set, but method is {self.method!r}, not {name!r}{hint}")
        kind, loss = self.model.kind, self.preference.loss
        if self.method == "reward_model" and kind not in ("causal", "classifier"):
            raise ValueError(f"model.kind is {kind!r}, but a reward model is made of a 'causal' or 'classifier' one")
        if self.method == "preference" and kind not in ("causal", "seq2seq"):
            raise ValueError(f"model.kind is {kind!r}, but preferences are learned by a 'causal' or 'seq2seq' one")
        if self.method == "inverse" and kind != "causal":
            raise ValueError(f"model.kind is {kind!r}, but rewards are recovered from a 'causal' one")
        if self.preference.flip_rate and loss not in ("dpo", "robust_dpo"):
            raise ValueError(f"preference.flip_rate is set, but belongs to loss 'dpo' or 'robust_dpo', not {loss!r}")

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


def _changed(section: BaseModel) -> str | None:
    """The first setting of a section that is not its default."""
    fields = type(section).model_fields
    return next((name for name, field in fields.items() if getattr(section, name) != field.default), None)


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
