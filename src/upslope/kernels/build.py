"""The compiled kernels of native.cpp: built at first use where a compiler is, cached by source, compiler and CPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from upslope.cache import cache_folder
from upslope.errors import KernelError

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
_COMPILERS = ("g++", "clang++", "c++")
_TIMEOUT_S = 120
_lock = threading.Lock()
FLOATS: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # what kernels read and write, whatever the defaults


def native() -> ctypes.CDLL:
    """The compiled kernels, built if need be; later calls return the first one's outcome.

    Raises: KernelError where no compiler is, where it fails, or where what it built gives wrong numbers.
    """
    with _lock:
        library, problem = _load_once()
    if library is None:
        raise KernelError(problem)
    return library


@functools.cache
def _load_once() -> tuple[ctypes.CDLL | None, str]:
    try:
        return _load(), ""
    except KernelError as error:
        return None, str(error)


def _load() -> ctypes.CDLL:
    from upslope.kernels.proof import prove  # compares with what is built on this module

    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found is None:
        raise KernelError(f"no C++ compiler is installed (looked for {', '.join(_COMPILERS)})")
    compiler = shlex.split(found)
    path = cache_folder() / "kernels" / f"native-{_key(compiler)}.so"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(path.parent)
        if not _intact(path):
            _build(compiler, path)
        library = ctypes.CDLL(str(path))
        library.panel_columns.restype = ctypes.c_int64
        prove(library)
    except (OSError, AttributeError) as error:  # a library that cannot be loaded, or lacks a function
        raise KernelError(f"the compiled kernels cannot be kept or loaded: {error}") from error
    return library


def _check_private(folder: Path) -> None:
    """Machine code that others may have put there is not loaded."""
    status = folder.stat()
    if os.name == "posix" and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise KernelError(f"the folder of compiled kernels, {folder}, can be written by others; make it your own")


def _key(compiler: Sequence[str]) -> str:
    """What decides the machine code: source, flags, compiler and processor."""
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"the C++ compiler {compiler[0]} does not run: {error}") from error
    parts = (_SOURCE.read_bytes(), " ".join(_FLAGS).encode(), version, _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _processor() -> str:
    """The processor's model and features, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))


def _intact(path: Path) -> bool:
    """Whether a library of an earlier build lies there whole: loading half of one can kill the process."""
    try:
        return _digest(path) == path.with_suffix(".sha256").read_bytes()
    except OSError:
        return False


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def _build(compiler: Sequence[str], path: Path) -> None:
    """Compile into place. Processes that do so at once each put the same whole file there."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        built = Path(folder) / path.name
        try:
            result = subprocess.run(
                [*compiler, *_FLAGS, str(_SOURCE), "-o", str(built)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise KernelError(f"the C++ compiler {compiler[0]} does not run: {error}") from error
        if result.returncode or not built.exists():
            reason = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
            raise KernelError(f"the C++ compiler {compiler[0]} fails: {reason or 'it wrote nothing'}")
        digest = built.with_suffix(".sha256")
        digest.write_bytes(_digest(built))
        built.replace(path)
        digest.replace(path.with_suffix(".sha256"))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where the data of a contiguous tensor of floats or 64-bit integers lie, for a kernel."""
    assert tensor.device.type == "cpu"
    assert tensor.is_contiguous()
    assert tensor.dtype in (torch.float32, torch.int64)
    return ctypes.c_void_p(tensor.data_ptr())


def sizes(*values: int) -> tuple[ctypes.c_int64, ...]:
    """Integers as a kernel takes them."""
    return tuple(ctypes.c_int64(value) for value in values)
