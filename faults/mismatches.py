"""Inputs that do not fit: a model and its tokenizer, weights and their config, a checkpoint and its run, a step and
the memory there is. Each is one clear error, and nothing that was there is overwritten."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import upslope
from faults.hooks import before, nth
from faults.processes import ended
from faults.runs import (
    check_done,
    check_intact,
    check_refused,
    check_resumes,
    copied,
    resume,
    resumed,
    start,
    task,
)
from faults.verdict import Injection, check
from upslope.engines.local import LocalEngine
from upslope.policies.tiny import tiny_model
from upslope.training import launch, policy_gradient

MEMORY = ("rollout", "update", "model")
VOCABULARY = ("tokens beyond the embedding", "an end beyond the embedding", "a config of another size")
SHAPE = ("a weight of another shape", "a weight that is missing", "a config with another layer")
CHECKPOINT = ("another base model", "other prompts", "another critic")
_LARGE: dict[str, Any] = {  # enough to need memory that the process does not have yet
    "group_size": 64, "max_rows": 256, "max_new_tokens": 24, "epochs": 1, "minibatches": 1, "steps": 3,
    "micro_batch_tokens": 100_000, "critic": "head",
}  # fmt: skip


def memory(injection: Injection) -> None:
    """The system refuses a process that takes a run up after its first step any further memory: an error that says
    which settings need less; the checkpoint stands, and without the limit the run goes on from there, bit for bit."""
    folder, whole = injection.folder / "run", injection.folder / "whole"
    if injection.case == "model":
        return _model_beyond_memory(injection.folder / "model", folder)
    place = {"rollout": (LocalEngine, "sample"), "update": (policy_gradient, "update")}[injection.case]
    check_done(ended(lambda _: start(whole, **_LARGE)))
    ended(lambda _: start(folder, stop_after=1, **_LARGE))  # check_intact below: it has saved its first step
    end = ended(lambda _: _within_memory(lambda: resume(folder), *place))
    check_refused(end, "OutOfMemoryError", "training.micro_batch_tokens")
    check_intact(folder, steps=(1,))
    return check_resumes(folder, whole)


def _model_beyond_memory(model: Path, folder: Path) -> None:
    """A model of 20 MB where there is room for 1: refused before there is a run folder."""
    made, tokenizer = tiny_model("tiny-llama", hidden_size=512)
    made.save_pretrained(model)
    tokenizer.save_pretrained(model)
    end = ended(lambda _: _within_memory(lambda: start(folder, model=str(model)), launch, "policy_of"))
    check_refused(end, "OutOfMemoryError", "training.micro_batch_tokens")
    check(not folder.exists(), "a run folder was made")


def _within_memory(train: Callable[[], object], owner: Any, name: str) -> None:
    before(owner, name, _allow_no_more, when=nth(1))
    train()


def _allow_no_more() -> None:
    """Cap the process's private memory at what it has now, and a little."""
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 20), resource.RLIM_INFINITY))


def model_mismatch(injection: Injection) -> None:
    """A model folder that contradicts itself is refused by what contradicts what, before there is a run folder."""
    model, folder = injection.folder / "model", injection.folder / "run"
    made, tokenizer = tiny_model("tiny-llama")
    made.save_pretrained(model)
    tokenizer.save_pretrained(model)
    words = _BREAK[injection.case](model, tokenizer)
    prompts = upslope.Task(prompts=["say <extra>", "say b"], reward=_length)
    end = ended(lambda _: start(folder, model=str(model), task=prompts))
    check_refused(end, "ModelError", *words)
    check(not folder.exists(), "a run folder was made")


def _length(completion: str) -> float:
    return float(len(completion))


def _more_tokens(model: Path, tokenizer: Any) -> tuple[str, ...]:
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    return "prompt 0", f"token {len(tokenizer) - 1}"


def _far_end(model: Path, tokenizer: Any) -> tuple[str, ...]:
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(model)
    return "the end of sequence", f"token {len(tokenizer) - 1}"


def _edit(model: Path, **settings: Any) -> tuple[str, ...]:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return (str(model),)


def _weights(model: Path, change: Callable[[dict[str, torch.Tensor], str], None]) -> tuple[str, ...]:
    path, name = model / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(path)
    change(tensors, name)
    save_file(tensors, path, metadata={"format": "pt"})
    return (name,)


_BREAK: dict[str, Callable[[Path, Any], tuple[str, ...]]] = {
    "tokens beyond the embedding": _more_tokens,
    "an end beyond the embedding": _far_end,
    "a config of another size": lambda model, _: (*_edit(model, vocab_size=120), "embed_tokens"),
    "a weight of another shape": lambda model, _: _weights(
        model, lambda tensors, name: tensors.update({name: tensors[name][:, :5].contiguous()})
    ),
    "a weight that is missing": lambda model, _: _weights(model, lambda tensors, name: tensors.pop(name)),
    "a config with another layer": lambda model, _: (*_edit(model, num_hidden_layers=3), "lacks", "layers.2"),
}


def checkpoint_mismatch(injection: Injection) -> None:
    """A run resumed with what it was not started with: refused; every byte of it is as it was, and it resumes."""
    folder = copied(injection.stopped, injection.folder / "run")
    held = _contents(folder)
    if injection.case == "another base model":
        end = resumed(folder, seed=9)  # which tiny models are drawn from
        words = ("other weights",)
    elif injection.case == "other prompts":
        end = resumed(folder, upslope.Task(prompts=["something else"], reward=task().terms[0]))
        words = ("other prompts",)
    else:
        end = resumed(folder, critic="head")
        words = ("other parameters", "the run's own recipe")
    check_refused(end, "CheckpointError", *words)
    changed = {name for name, digest in _contents(folder).items() if held.get(name) != digest}
    check(not changed, f"{sorted(changed)} are not as they were")
    check_resumes(folder, injection.whole)


def _contents(folder: Path) -> dict[str, str]:
    """Digests of all files of a run but the trackers', which begin a file of their own at each start."""
    files = [path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
