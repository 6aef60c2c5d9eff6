"""Checkpoints and training state: what is saved comes back to the bit."""

import hashlib
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope.errors import CheckpointError
from upslope.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_latest,
    load_optimizer,
    optimizer_tensors,
    prune_checkpoints,
    random_state,
    restore_random_state,
    save_checkpoint,
)


def _bits(tensor):
    return (tensor.dtype, tuple(tensor.shape), tensor.detach().reshape(-1).contiguous().view(torch.uint8).tolist())


def test_tensors_and_state_come_back_to_the_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 4, generator=generator)
    tensors = {
        "model": {
            "float32": wide,
            "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
            "bfloat16": torch.randn(5, generator=generator).bfloat16(),
            "float64": torch.randn(2, 2, generator=generator, dtype=torch.float64),
            "nan": torch.tensor([math.nan, -0.0, math.inf, 1e-45]),
            "int64": torch.tensor([2**62, -1]),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(3.0),
            "empty": torch.zeros(0, 4),
            "also empty": torch.zeros(0, 4),
            "transposed": torch.randn(3, 4, generator=generator).t(),
            "strided": torch.arange(10)[::3],
        },
        "none": {},
    }
    state = {
        "kl_coef": 0.1 + 0.2,
        "best": -math.inf,
        "nan": math.nan,
        "seen": 2**60,
        "name": "é",
        "nested": [{"a": None}],
    }
    path = save_checkpoint(tmp_path / "checkpoints", 10, tensors=tensors, state=state)
    assert path == tmp_path / "checkpoints" / "step-00000010"
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.path) == (10, path)
    assert {part: set(named) for part, named in loaded.tensors.items()} == {p: set(n) for p, n in tensors.items()}
    for name, tensor in tensors["model"].items():
        assert _bits(loaded.tensors["model"][name]) == _bits(tensor), name
    assert math.isnan(loaded.state.pop("nan"))
    del state["nan"]
    assert loaded.state == state
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "none.safetensors",
        "state.json",
    ]


def test_loaded_tensors_are_aligned_and_outlive_their_file(tmp_path):
    """safetensors maps the file at odd offsets; kernels may add up unaligned rows in another order."""
    path = save_checkpoint(tmp_path, 1, tensors={"m": {"a": torch.ones(3), "b": torch.full((5,), 2.0)}}, state={})
    tensors = load_checkpoint(path).tensors["m"]
    with (path / "m.safetensors").open("r+b") as file:
        file.truncate(0)  # a mapped tensor would now end the process by SIGBUS
    assert tensors["b"].tolist() == [2.0] * 5
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors.values())


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path):
    weight = torch.nn.Parameter(torch.arange(2048.0).reshape(64, 32))
    tensors = {"embed": weight, "head": weight, "row": weight[3], "transposed": weight.t()}
    path = save_checkpoint(tmp_path, 1, tensors={"model": tensors}, state={})
    loaded = load_checkpoint(path).tensors["model"]
    for name, tensor in tensors.items():
        assert _bits(loaded[name]) == _bits(tensor), name
    assert loaded["embed"] is loaded["head"]
    assert loaded["row"].untyped_storage().data_ptr() != loaded["embed"].untyped_storage().data_ptr()
    size = (path / "model.safetensors").stat().st_size
    assert 2 * weight.nbytes < size < 3 * weight.nbytes  # embed and transposed, but head not again


def test_a_step_saved_again_replaces_the_first(tmp_path):
    for value in (1, 2):
        save_checkpoint(tmp_path, 5, tensors={}, state={"value": value})
    checkpoint, problems = load_latest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.state, problems) == ({"value": 2}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path) == (None, [])
    assert load_latest(tmp_path / "missing") == (None, [])


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    for step in (5, 10, 15, 20, 25):
        save_checkpoint(tmp_path, step, tensors={}, state={})
    removed = prune_checkpoints(tmp_path, keep_last=2, keep={10, 99})
    assert [path.name for path in removed] == ["step-00000005", "step-00000015"]
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [10, 20, 25]
    assert prune_checkpoints(tmp_path, keep_last=9) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_state_that_has_no_json_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, 5, tensors={}, state={"value": object()})
    assert list(tmp_path.iterdir()) == []


def _draws():
    return [
        *[random.random() for _ in range(700)],
        random.gauss(0, 1),
        *np.random.random(700).tolist(),
        np.random.standard_normal(),
        *torch.rand(700, dtype=torch.float64).tolist(),
        *torch.randn(3, dtype=torch.float64).tolist(),
        torch.randperm(9).tolist(),
    ]


@pytest.fixture
def _seeded():
    before = random_state()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    yield
    restore_random_state(before)


@pytest.mark.usefixtures("_seeded")
def test_random_state_comes_back_through_json():
    """CHECKS 38: torch, NumPy and Python draw on as if nothing had happened; halves of Gaussian pairs included."""
    random.gauss(0, 1)
    np.random.standard_normal()
    torch.randn(1)
    saved = json.loads(json.dumps(random_state()))
    expected = _draws()
    assert _draws() != expected
    restore_random_state(saved)
    assert _draws() == expected


def _optimizer(model, kind):
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias]  # model[2].bias is frozen
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0, "lr": 3e-3}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
    if kind == "tensor lr":
        return torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False)
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), **{kind: True})


def _model(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model[2].bias.requires_grad_(False)
    return model


def _train(model, optimizer, steps):
    for step in steps:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        if step == 0:
            model[0].bias.grad = None  # one parameter gets its state later than the others
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] *= 0.9
        optimizer.step()


@pytest.mark.parametrize("kind", ["foreach", "fused", "amsgrad", "maximize", "sgd", "tensor lr"])
@pytest.mark.parametrize("done", [1, 3])
@pytest.mark.usefixtures("_seeded")
def test_a_resumed_optimizer_takes_bitwise_the_same_steps(tmp_path, kind, done):
    """CHECKS 38, within one process: N + M steps = N steps, save, a fresh model and optimiser, M steps."""
    straight = _model()
    optimizer = _optimizer(straight, kind)
    _train(straight, optimizer, range(done))
    tensors, state = optimizer_tensors(optimizer, straight.named_parameters())
    path = save_checkpoint(
        tmp_path, done, tensors={"model": straight.state_dict(), "optimizer": tensors}, state={"optimizer": state}
    )
    _train(straight, optimizer, range(done, 6))

    resumed = _model(seed=7)
    other = _optimizer(resumed, kind)
    _train(resumed, other, range(9, 11))  # state of its own, which must go
    saved = load_checkpoint(path)
    resumed.load_state_dict(saved.tensors["model"])
    load_optimizer(other, resumed.named_parameters(), saved.tensors["optimizer"], saved.state["optimizer"])
    _train(resumed, other, range(done, 6))
    again = load_checkpoint(path)
    for name, tensor in again.tensors["optimizer"].items():  # loading copies: a checkpoint may be loaded twice
        assert _bits(saved.tensors["optimizer"][name]) == _bits(tensor), name

    assert [_bits(p) for p in resumed.parameters()] == [_bits(p) for p in straight.parameters()]
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    ours, theirs = other.state_dict()["state"], optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for index, slots in theirs.items():
        assert {k: _bits(torch.as_tensor(v)) for k, v in ours[index].items()} == {
            k: _bits(torch.as_tensor(v)) for k, v in slots.items()
        }


_NEW_PROCESS = """
import hashlib, random, sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, sys.argv[2])
from test_checkpoint import _model, _noisy_steps, _optimizer, _fingerprint
from upslope.training.checkpoint import load_latest, load_optimizer, restore_random_state
saved, problems = load_latest(Path(sys.argv[1]))
model = _model(seed=9)
model.load_state_dict(saved.tensors["model"])
optimizer = _optimizer(model, "foreach")
load_optimizer(optimizer, model.named_parameters(), saved.tensors["optimizer"], saved.state["optimizer"])
restore_random_state(saved.state["random"])
_noisy_steps(model, optimizer, 3)
print(_fingerprint(model))
"""


def _noisy_steps(model, optimizer, count):
    for _ in range(count):
        inputs = torch.randn(16, 4) * random.random() + float(np.random.standard_normal())
        optimizer.zero_grad()
        torch.nn.functional.dropout(model(inputs), 0.3).square().sum().backward()
        optimizer.step()


def _fingerprint(model):
    data = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    return hashlib.sha256(data).hexdigest(), random.random(), float(np.random.random()), float(torch.rand(()))


@pytest.mark.usefixtures("_seeded")
def test_a_new_process_takes_bitwise_the_same_steps(tmp_path):
    """CHECKS 38: parameters, optimiser and all three generators, across an interpreter's end."""
    model = _model()
    optimizer = _optimizer(model, "foreach")
    _noisy_steps(model, optimizer, 2)
    tensors, state = optimizer_tensors(optimizer, model.named_parameters())
    save_checkpoint(
        tmp_path,
        2,
        tensors={"model": model.state_dict(), "optimizer": tensors},
        state={"optimizer": state, "random": random_state()},
    )
    _noisy_steps(model, optimizer, 3)
    arguments = [sys.executable, "-c", _NEW_PROCESS, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(_fingerprint(model))


def test_an_optimizer_of_other_parameters_is_refused_before_anything_changes():
    model = _model()
    optimizer = _optimizer(model, "foreach")
    _train(model, optimizer, range(2))
    tensors, state = optimizer_tensors(optimizer, model.named_parameters())
    fresh = _optimizer(model, "foreach")
    renamed = [("x" + name, parameter) for name, parameter in model.named_parameters()]
    with pytest.raises(
        CheckpointError, match=r"holds other parameters than this model: '0.bias' is in one of them only"
    ):
        load_optimizer(fresh, renamed, tensors, state)
    wrong = {**tensors, "exp_avg/0.bias": torch.zeros(9)}
    with pytest.raises(
        CheckpointError, match=r"'exp_avg' of '0.bias' has shape \[9\], not that of the parameter \(\[8\]\)"
    ):
        load_optimizer(fresh, model.named_parameters(), wrong, state)
    swapped = {**state, "groups": state["groups"][::-1]}
    with pytest.raises(CheckpointError, match="grouped or ordered differently"):
        load_optimizer(fresh, model.named_parameters(), tensors, swapped)
    assert len(fresh.state) == 0
