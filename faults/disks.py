"""Disks that are full or cannot be written: a small file system of one injection's own, in a mount namespace that
vanishes with its process; where mounting is not allowed, a limit on file sizes and the permission bits stand in."""

from __future__ import annotations

import ctypes
import resource
import subprocess
from pathlib import Path
from typing import Any

from faults.hooks import before
from faults.processes import ended
from faults.runs import (
    STEPS,
    STOPPED,
    check_bitwise,
    check_done,
    check_intact,
    check_refused,
    check_resumes,
    copied,
    resume,
    start,
)
from faults.verdict import Injection
from upslope.policies.causal import CausalPolicy
from upslope.report import run as report_run
from upslope.report.jsonl import JsonLines
from upslope.report.lock import FolderLock
from upslope.report.trackers import TensorBoard
from upslope.training import checkpoint

FILES = (
    "lock", "recipe.toml", "events.jsonl", "samples.jsonl", "tensorboard",
    "parameters.safetensors", "optimizer.safetensors", "state.json", "manifest.json", "model.safetensors",
)  # fmt: skip
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of unshare(2)
_PAGE = 4096
_DISK = "24m"


def can_mount() -> bool:
    """Whether file systems can be mounted here, tried in a process that ends with them."""
    return ended(lambda _: _own_mounts()).how == "done"


def fill_up(injection: Injection) -> None:
    """The disk fills up right before one file of the run folder is written: the error names the file, the checkpoint
    before it loads, and once there is room the run goes on."""
    disk = Disk(injection.folder / "disk")
    folder, file, step = disk.path / "run", injection.case, injection.rng.randint(2, STEPS - 1)
    if file in ("lock", "recipe.toml"):  # written when a run starts, so when it is resumed
        copied(injection.stopped, folder)
        end, step = ended(lambda _: _resume_on_full(disk, folder, file)), STOPPED
    else:
        left = injection.rng.randrange(3) if file in ("parameters.safetensors", "optimizer.safetensors") else 0
        end = ended(lambda _: _start_on_full(disk, folder, file, step, left))
    disk.free()
    if file == "tensorboard":  # a tracker's, so the run matters more
        check_done(end)
        return check_bitwise(folder, injection.whole)
    check_refused(end, "CheckpointError", "model" if file == "model.safetensors" else file, disk.reason)
    check_intact(folder, steps=(STEPS,) if file == "model.safetensors" else (step - 1, step))
    return check_resumes(folder, injection.whole)


class Disk:
    """A disk of 24 MiB that can be filled and freed."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.mounted = can_mount()
        self.reason = "No space left on device" if self.mounted else "File too large"
        if self.mounted:
            _own_mounts()
            _run("mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", path)

    def fill(self, pages_left: int = 0) -> None:
        """Leave so many pages free; without a mount, let no file of this process grow any more."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        for log in self.path.rglob(
            "*.jsonl"
        ):  # blank lines to the end of the page, else the next line finds room there
            with log.open("ab") as file:
                file.write(b"\n" * (-log.stat().st_size % _PAGE))
        with (self.path / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(_PAGE))
            except OSError:
                filler.truncate(max(0, filler.tell() - pages_left * _PAGE))

    def free(self) -> None:
        """Make room again."""
        (self.path / "filler").unlink(missing_ok=True)


def _resume_on_full(disk: Disk, folder: Path, file: str) -> None:
    owner, name = (FolderLock, "acquire") if file == "lock" else (report_run, "write_text")
    before(owner, name, disk.fill, when=lambda *_: True)
    resume(folder, keep_last=3)  # another setting, so that the recipe is written anew


def _start_on_full(disk: Disk, folder: Path, file: str, step: int, left: int) -> None:
    def named(path: Path, *_: Any) -> bool:
        return path.name == file and f"step-{step:08d}" in str(path)

    def logged(lines: JsonLines, record: dict[str, Any]) -> bool:
        return lines.path.name == file and record["step"] == step and record["kind"] in ("train", "sample")

    if file.endswith(".jsonl"):
        before(JsonLines, "append", disk.fill, when=logged)
    elif file == "model.safetensors":
        before(CausalPolicy, "save", disk.fill, when=lambda *_: True)
    elif file == "tensorboard":
        before(TensorBoard, "close", disk.fill, when=lambda *_: True)
    else:
        writer = "_save_tensors" if file.endswith(".safetensors") else "_write"
        before(checkpoint, writer, lambda: disk.fill(left), when=named)
    start(folder)


class Gate:
    """A folder that can be made read-only and writable again, by this process and by its forks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mounts = can_mount()
        if self.mounts:
            _own_mounts()

    def close(self) -> None:
        """From now on nothing under the folder can be made or opened for writing."""
        if self.mounts:
            _run("mount", "--bind", self.path, self.path)
            _run("mount", "-o", "remount,bind,ro", self.path)
        else:
            self.path.chmod(0o555)

    def open(self) -> None:
        """Undo `close`."""
        if self.mounts:
            _run("umount", self.path)
        else:
            self.path.chmod(0o755)


def _own_mounts() -> None:
    """Give this process mounts of its own, which nothing else sees and which end with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "mounts of its own are not allowed here")
    _run("mount", "--make-rprivate", "/")


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
