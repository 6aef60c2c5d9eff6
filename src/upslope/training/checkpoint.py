"""Checkpoints that survive crashes: written aside, checksummed, renamed into place, and free of pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from upslope.errors import CheckpointError
from upslope.report.lock import Owner
from upslope.training.state import load_optimizer, optimizer_tensors, random_state, restore_random_state

__all__ = [
    "Checkpoint",
    "checkpoint_path",
    "list_checkpoints",
    "load_checkpoint",
    "load_latest",
    "load_optimizer",
    "optimizer_tensors",
    "prune_checkpoints",
    "random_state",
    "remove_checkpoint",
    "restore_random_state",
    "save_checkpoint",
    "sweep",
]

_FORMAT = 1
_MENDS = {
    "write": "make room or make it writable",
    "read": "use the checkpoint before it",
    "remove": "make its folder writable",
}
_STALE_AFTER_S = 3600.0  # for what another host left: its processes cannot be asked after


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything saved after a step: named tensors by part (`tensors["model"]`), JSON state, and the folder."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, or would lie."""
    return folder / f"step-{step:08d}"


def save_checkpoint(
    folder: Path, step: int, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Save one step to `folder/step-00000010`; returns that path once all of it is on the disk.

    Each part of tensors goes to `PART.safetensors` from a CPU copy: tied tensors are stored once and come back tied,
    views come back contiguous. state is JSON (its floats, NaN included, return exactly) and goes to `state.json`;
    `manifest.json` holds every file's size and SHA-256. The files are written to a temporary sibling folder, flushed
    to the disk, and the folder is renamed, so that a crash at any moment leaves a whole checkpoint or none. A
    checkpoint of the same step is replaced; those of later steps are removed: they are damaged, or of a course that
    was left when the run was resumed from an earlier step, and must not be what the next resume finds.
    Raises: CheckpointError naming the file that could not be written; earlier checkpoints are untouched.
    """
    final = checkpoint_path(folder, step)
    temporary = folder / _temporary_name(final.name)
    with _named(folder, "write"):
        folder.mkdir(exist_ok=True)  # but not its parents: a run folder that is gone took its log along
        temporary.mkdir()
    try:
        sweep(folder)
        for part, named in tensors.items():
            _save_tensors(temporary / f"{part}.safetensors", named)
        _write(temporary / "state.json", json.dumps(state))
        _write(temporary / "manifest.json", _manifest(temporary, step))
        with _named(final, "write"):
            _flush(temporary)
            remove_checkpoint(final)
            temporary.rename(final)
            _flush(folder)
            for later in list_checkpoints(folder):
                if later.name > final.name:
                    remove_checkpoint(later)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in one folder, after every file has been compared with its manifest.

    Raises: CheckpointError saying which file is missing, truncated, altered, or no safetensors file.
    """
    manifest = _verified(path)
    with _named(path, "read"):
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    parts = [Path(name) for name in manifest["files"] if name.endswith(".safetensors")]
    tensors = {part.stem: _load_tensors(path / part) for part in parts}
    return Checkpoint(step=manifest["step"], tensors=tensors, state=state, path=path)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint of a folder, or None, and one sentence on each newer one that is damaged."""
    problems: list[str] = []
    sweep(folder)
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def list_checkpoints(folder: Path) -> list[Path]:
    """The folders of all checkpoints, in order of steps, intact or not."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def prune_checkpoints(folder: Path, *, keep_last: int, keep: Iterable[int] = ()) -> list[Path]:
    """Remove all but the last `keep_last` (>= 1) checkpoints and those of the steps in `keep`; returns the removed."""
    assert keep_last >= 1
    kept = {checkpoint_path(folder, step).name for step in keep}
    removed = [path for path in list_checkpoints(folder)[:-keep_last] if path.name not in kept]
    for path in removed:
        with _named(path, "remove"):
            remove_checkpoint(path)
    return removed


def remove_checkpoint(path: Path) -> None:
    """Remove one checkpoint, if it is there, so that a crash leaves no half of it under its name."""
    if path.exists():
        aside = path.with_name(_temporary_name(f"removed-{path.name}"))
        path.rename(aside)
        shutil.rmtree(aside)


def sweep(folder: Path) -> list[Path]:
    """Delete the temporary folders of processes that died while saving; returns those deleted."""
    stale = [path for path in folder.glob(".tmp-*") if _is_stale(path)]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return stale


def _temporary_name(name: str) -> str:
    owner = Owner.current()
    return f".tmp-{owner.pid}-{owner.started}-{time.monotonic_ns()}-{name}@{owner.host}"


def _is_stale(path: Path) -> bool:
    try:
        owner = Owner(int(path.name.split("-")[1]), path.name.partition("@")[2], int(path.name.split("-")[2]))
        return not owner.is_alive() if owner.is_here else time.time() - path.stat().st_mtime > _STALE_AFTER_S
    except (ValueError, IndexError, OSError):
        return False  # not one of ours, or gone meanwhile


def _manifest(folder: Path, step: int) -> str:
    files = {}
    for path in sorted(folder.iterdir()):
        with _named(path, "write"):
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest: dict[str, Any] = {"format": _FORMAT, "step": step, "files": files}
    return json.dumps({**manifest, "sha256": _own_digest(manifest)}, indent=1)


def _own_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _verified(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all as it says."""
    with _named(path / "manifest.json", "read"):
        text = (path / "manifest.json").read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(text)
        claimed = manifest.pop("sha256")
        intact = claimed == _own_digest(manifest) and manifest["format"] == _FORMAT
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise _damaged(path / "manifest.json", "it is not what was written")
    for name, entry in manifest["files"].items():
        file = path / name
        with _named(file, "read"):
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise _damaged(file, f"it has {size} bytes instead of {entry['bytes']}")
            if _digest(file) != entry["sha256"]:
                raise _damaged(file, "its SHA-256 is not that of what was written")
    return manifest


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"checkpoint file {file} is damaged: {why}; use the checkpoint before it")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    stored, aliases = _unshared(tensors)
    with _named(path, "write"):
        save_file(stored, path, metadata={"aliases": json.dumps(aliases)})
        _flush(path)


def _unshared(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU tensors that share no memory, and, for each name left out, the name of its identical twin."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        view = (memory, tensor.device, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in first:
            aliases[name] = first[view]
            continue
        first[view] = name
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in storages:
            copy = copy.clone()
        storages.add(copy.untyped_storage().data_ptr())
        stored[name] = copy
    return stored, aliases


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of their own, aligned memory: those of safetensors map the file, which may be pruned meanwhile."""
    with _named(path, "read"), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    return tensors | {name: tensors[twin] for name, twin in aliases.items()}


def _write(path: Path, text: str) -> None:
    with _named(path, "write"):
        path.write_text(text, encoding="utf-8")
        _flush(path)


def _flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _named(path: Path, action: str) -> Iterator[None]:
    """Turn errors of the file system and of safetensors into one that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(f"cannot {action} {path}: {reason}; {_MENDS[action]}") from error
