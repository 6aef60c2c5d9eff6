"""The compiled kernels of native.cpp: built at first use where a compiler is, cached by source, compiler and CPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

from upslope.cache import cache_folder
from upslope.errors import KernelError

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
_COMPILERS = ("g++", "clang++", "c++")
_TIMEOUT_S = 120
_lock = threading.Lock()


def native() -> ctypes.CDLL:
    """The compiled kernels, built if need be; later calls return the first one's outcome.

    Raises: KernelError where no compiler is, where it fails, or where what it built computes something else.
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
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise KernelError(f"no C++ compiler is installed (looked for {', '.join(_COMPILERS)})")
    path = cache_folder() / "kernels" / f"native-{_key(compiler)}.so"
    try:
        if not _intact(path):
            _build(compiler, path)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"the compiled kernels cannot be kept or loaded: {error}") from error
    library.panel_columns.restype = ctypes.c_int64
    _check(library)
    return library


def _key(compiler: str) -> str:
    """What decides the machine code: source, flags, compiler and processor."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"the C++ compiler {compiler} does not run: {error}") from error
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
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(".sha256").read_text()
    except OSError:
        return False


def _build(compiler: str, path: Path) -> None:
    """Compile into place. Processes that do so at once each put the same whole file there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        built = Path(folder) / path.name
        try:
            result = subprocess.run(
                [compiler, *_FLAGS, str(_SOURCE), "-o", str(built)],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise KernelError(f"the C++ compiler {compiler} does not run: {error}") from error
        if result.returncode or not built.exists():
            reason = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
            raise KernelError(f"the C++ compiler {compiler} fails: {reason or 'it wrote nothing'}")
        digest = built.with_suffix(".sha256")
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        built.replace(path)
        digest.replace(path.with_suffix(".sha256"))


def _check(library: ctypes.CDLL) -> None:
    """A product of odd sizes against PyTorch's: a compiler can be wrong, and a cache can be somebody else's."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, inner = 7, 37, 19
    x, weight = torch.randn(rows, inner, generator=generator), torch.randn(columns, inner, generator=generator)
    panel = library.panel_columns()
    packed, y = torch.empty(-(-columns // panel) * panel * inner), torch.empty(rows, columns)
    library.pack(pointer(weight), pointer(packed), *sizes(columns, inner))
    library.linear(pointer(x), pointer(packed), None, pointer(y), *sizes(rows, columns, inner))
    if not torch.allclose(y, x @ weight.T, atol=1e-4):
        raise KernelError("the compiled kernels compute wrong products")


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where the tensor's data lie, for a kernel."""
    return ctypes.c_void_p(tensor.data_ptr())


def sizes(*values: int) -> tuple[ctypes.c_int64, ...]:
    """Integers as a kernel takes them."""
    return tuple(ctypes.c_int64(value) for value in values)
