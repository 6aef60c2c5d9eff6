"""Faults to survive: checkpoints under full disks, truncation, flipped bits, foreign files; see tests/faults."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import socket
from contextlib import contextmanager

import pytest
import torch

from faults.damage import flip, truncate
from upslope.errors import CheckpointError
from upslope.report.lock import Owner
from upslope.training.checkpoint import load_checkpoint, load_latest, prune_checkpoints, save_checkpoint, sweep


def _save(folder, step, model=100, critic=10, optimizer=10, text=""):
    sizes = {"model": model, "critic": critic, "optimizer": optimizer}
    tensors = {part: {"w": torch.full((size,), float(step))} for part, size in sizes.items()}
    return save_checkpoint(folder, step, tensors=tensors, state={"step": step, "text": text})


@contextmanager
def _full_disk(size):
    """No file may grow beyond size bytes: `write` is first cut short, then fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


_FILES = ["model.safetensors", "critic.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("limit", [0, 2000])
@pytest.mark.parametrize("file", _FILES)
def test_disk_full_at_each_file(tmp_path, file, limit):
    """The error names the file, nothing is left behind, and the step before loads. (0 bytes: at the first file.)"""
    _save(tmp_path, 5)
    big = {"text": "x" * 9000} if file == "state.json" else {file.split(".")[0]: 9000}
    expected = file if limit else "model.safetensors"
    with _full_disk(limit), pytest.raises(CheckpointError, match=rf"cannot write .*{expected}: .*File too large"):
        _save(tmp_path, 10, **big)
    _assert_only_step_5(tmp_path)


def test_disk_full_at_the_manifest(tmp_path):
    _save(tmp_path, 5)
    with _full_disk(100), pytest.raises(CheckpointError, match=r"cannot write .*manifest\.json: File too large"):
        save_checkpoint(tmp_path, 10, tensors={}, state={})
    _assert_only_step_5(tmp_path)


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path):
    """Its log went with it: a checkpoint alone could not be resumed from."""
    with pytest.raises(CheckpointError, match=r"cannot write .*gone/checkpoints: No such file"):
        _save(tmp_path / "gone" / "checkpoints", 5)
    assert not list(tmp_path.iterdir())
    _save(tmp_path / "checkpoints", 5)
    _assert_only_step_5(tmp_path / "checkpoints")


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_disk_full_said_only_when_flushing_or_renaming(tmp_path, monkeypatch, call):
    """Delayed allocation: some file systems notice a full disk no earlier than at fsync."""
    _save(tmp_path, 5)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000010.*: No space left on device"):
        _save(tmp_path, 10)
    monkeypatch.undo()
    _assert_only_step_5(tmp_path)


def _assert_only_step_5(folder):
    assert [path.name for path in folder.iterdir()] == ["step-00000005"]
    checkpoint, problems = load_latest(folder)
    assert checkpoint is not None
    assert problems == []
    assert checkpoint.step == 5
    assert checkpoint.tensors["model"]["w"].tolist() == [5.0] * 100


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    for step in (5, 10):
        _save(folder, step, text="some text")
    return folder


def _damage(pristine, tmp_path, change, seed):
    """A copy of two checkpoints, the newer one with one file changed: every file has its turn."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    files = sorted((folder / "step-00000010").iterdir())
    assert len(files) == 5
    file = files[seed % 5]
    data = bytearray(file.read_bytes())
    file.write_bytes(change(data, random.Random(seed)))
    return folder, file


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("change", [truncate, flip])
def test_checkpoint_truncated_or_bits_flipped(pristine, tmp_path, change, seed):
    """Found by checksum, said with the file's name, and the step before is used."""
    folder, file = _damage(pristine, tmp_path, change, seed)
    checkpoint, problems = load_latest(folder)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert checkpoint.tensors["model"]["w"].tolist() == [5.0] * 100
    assert len(problems) == 1
    assert f"{file} is damaged: " in problems[0]
    if change is truncate and file.name != "manifest.json":
        assert f"it has {file.stat().st_size} bytes instead of" in problems[0]


def test_every_bit_of_a_manifest_counts(pristine, tmp_path):
    shutil.copytree(pristine / "step-00000010", tmp_path / "step-00000010")
    manifest = tmp_path / "step-00000010" / "manifest.json"
    data = manifest.read_bytes()
    for index in range(len(data)):
        manifest.write_bytes(data[:index] + bytes([data[index] ^ (1 << index % 8)]) + data[index + 1 :])
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            load_checkpoint(tmp_path / "step-00000010")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_checkpoint_with_a_missing_file(pristine, tmp_path, name):
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    (folder / "step-00000010" / name).unlink()
    checkpoint, problems = load_latest(folder)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert [f"cannot read {folder / 'step-00000010' / name}: No such file" in problem for problem in problems] == [True]


def test_a_damaged_checkpoint_does_not_outlive_the_resumed_run(pristine, tmp_path):
    """Step 10 is damaged, the run goes on from 5 and stops at 7: the next resume takes 7, and pruning keeps it."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    (folder / "step-00000010" / "model.safetensors").write_bytes(b"")
    _save(folder, 7)
    prune_checkpoints(folder, keep_last=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000007"]
    checkpoint, problems = load_latest(folder)
    assert checkpoint is not None
    assert (checkpoint.step, problems) == (7, [])


def test_all_checkpoints_damaged_is_none_and_all_are_named(pristine, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    for path in folder.iterdir():
        (path / "state.json").write_text("{}")
    checkpoint, problems = load_latest(folder)
    assert checkpoint is None
    assert [f"step-{step:08d}/state.json is damaged" in p for step, p in zip((10, 5), problems, strict=True)] == [
        True
    ] * 2


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("manifest", ["as it was", "made to match"])
@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_in_place_of_tensors_is_refused_and_not_executed(pristine, tmp_path, manifest, dump):
    """Loading: pickles in every file we load. Even with a matching manifest, no file is ever unpickled."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    path, marker = folder / "step-00000010", tmp_path / "executed"
    with (path / "model.safetensors").open("wb") as file:
        dump(_Payload(marker), file)
    if manifest == "made to match":
        _forge_manifest(path)
    checkpoint, problems = load_latest(folder)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert "model.safetensors" in problems[0]
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Payload(marker)))
    assert marker.exists()  # the payload would have worked


def _forge_manifest(path):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_forged_manifest_would_be_believed(pristine, tmp_path):
    """The forgery above is sound: with honest files it loads, so it is the safetensors reader that refused."""
    shutil.copytree(pristine / "step-00000010", tmp_path / "step-00000010")
    (tmp_path / "step-00000010" / "state.json").write_text('{"new": 1}')
    _forge_manifest(tmp_path / "step-00000010")
    assert load_checkpoint(tmp_path / "step-00000010").state == {"new": 1}


@pytest.mark.parametrize("place", ["/proc/self/checkpoints", "{tmp}/file/checkpoints", "{tmp}/file"])
def test_read_only_folder(tmp_path, place):
    """Even root cannot make folders in /proc, nor inside a file."""
    (tmp_path / "file").write_text("")
    folder = tmp_path.__class__(place.format(tmp=tmp_path))
    with pytest.raises(CheckpointError, match=f"cannot write {folder}: "):
        _save(folder, 1)
    assert load_latest(folder) == (None, [])


def _stale(folder, pid, started, host):
    path = folder / f".tmp-{pid}-{started}-1-step-00000010@{host}"
    path.mkdir()
    (path / "model.safetensors").write_text("half")
    return path


@pytest.mark.parametrize("when", ["save", "load"])
def test_stale_files_are_swept_but_not_those_of_the_living(tmp_path, when):
    this, here = Owner.current(), socket.gethostname()
    living = _stale(tmp_path, this.pid, this.started, here)
    elsewhere = _stale(tmp_path, 1, 1, f"not-{here}")
    dead = _stale(tmp_path, 999999999, 1, here)
    reused_pid = _stale(tmp_path, this.pid, this.started - 1, here)
    long_gone = _stale(tmp_path, 2, 1, f"not-{here}")
    os.utime(long_gone, (0, 0))
    if when == "save":
        _save(tmp_path, 1)
    else:
        load_latest(tmp_path)
    assert [path.exists() for path in (living, elsewhere, dead, reused_pid, long_gone)] == [True, True, *[False] * 3]
    assert sweep(tmp_path) == []


def test_an_interrupted_removal_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for step in (5, 10, 15):
        _save(tmp_path, step)

    def interrupted(path, **_):
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoints(tmp_path, keep_last=1)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000015"]


def test_ctrl_c_while_saving_leaves_nothing_behind(tmp_path, monkeypatch):
    _save(tmp_path, 5)
    flushed = []

    def interrupted(handle):
        flushed.append(handle)
        if len(flushed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, 10)
    monkeypatch.undo()
    _assert_only_step_5(tmp_path)
