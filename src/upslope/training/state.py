"""What a run remembers beside its weights: random generators and the optimiser, out and back without losing a bit."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import CheckpointError


def random_state() -> dict[str, Any]:
    """State of the global generators of torch (and every CUDA device), NumPy and Python, in JSON's types."""
    version, words, gauss = random.getstate()
    numpy_state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    numpy_state["state"] = {"key": numpy_state["state"]["key"].tolist(), "pos": int(numpy_state["state"]["pos"])}
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": numpy_state,
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in cuda],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators back as `random_state` found them; CUDA devices as far as both sides have them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_available():
        for device, saved in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(_bytes(saved), device)


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).clone()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state: tensors by `slot/parameter name` (`exp_avg/lm_head.weight`, no copies), and in JSON its
    groups (names of parameters, learning rate, ...) and whatever else it holds by parameter.

    named_parameters names every parameter the optimiser holds, by the same name at every run.
    """
    names = {id(parameter): name for name, parameter in named_parameters}
    tensors: dict[str, Tensor] = {}
    other: dict[str, dict[str, Any]] = {}
    for parameter, slots in optimizer.state.items():
        name = names[id(parameter)]
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{slot}/{name}"] = value
            else:
                other.setdefault(name, {})[slot] = value
    groups = []
    for group in optimizer.param_groups:
        settings = {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
        groups.append({"names": [names[id(parameter)] for parameter in group["params"]], "settings": settings})
    return tensors, {"groups": groups, "other": other}


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_tensors` returned. A parameter that had no state then has none afterwards.

    Raises: CheckpointError, before anything is changed, when groups, names or shapes are not those saved.
    """
    parameters = dict(named_parameters)
    _check(optimizer, parameters, tensors, state)
    groups: dict[str, dict[str, Any]] = {}
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        for setting, value in saved["settings"].items():
            _restore_setting(group, setting, value)
        groups |= dict.fromkeys(saved["names"], group)
    optimizer.state.clear()
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        device = _device(slot, parameters[name], groups[name])
        optimizer.state[parameters[name]][slot] = value.detach().to(device, copy=True)
    for name, slots in state["other"].items():
        optimizer.state[parameters[name]].update(slots)


def _restore_setting(group: dict[str, Any], setting: str, value: Any) -> None:
    current = group.get(setting)
    if isinstance(current, Tensor):
        current.fill_(value)
    else:
        group[setting] = tuple(value) if isinstance(value, list) else value


def _device(slot: str, parameter: Tensor, group: Mapping[str, Any]) -> torch.device:
    """Where torch keeps a slot: with its parameter, except that step counts stay on the CPU for the plain kernels."""
    on_cpu = slot == "step" and not (group.get("fused") or group.get("capturable"))
    return torch.device("cpu") if on_cpu else parameter.device


def _check(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    names = {id(parameter): name for name, parameter in parameters.items()}
    held = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    saved = [group["names"] for group in state["groups"]]
    if held != saved:
        changed = sorted({n for group in held for n in group} ^ {n for group in saved for n in group})
        what = f"{changed[0]!r} is in one of them only" if changed else "they are grouped or ordered differently"
        raise CheckpointError(
            f"the checkpoint's optimiser holds other parameters than this model: {what}; resume with the run's recipe"
        )
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        shape = parameters[name].shape if name in parameters else None
        if shape is None or (value.dim() and value.shape != shape):
            raise CheckpointError(
                f"the checkpoint's optimiser state {slot!r} of {name!r} has shape {list(value.shape)}, not that of the "
                f"parameter ({'missing' if shape is None else list(shape)}); resume with the run's recipe"
            )
