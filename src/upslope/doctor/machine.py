"""The machine: versions, processors and devices, threads, the compiler, and how much memory there is."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from upslope.doctor.findings import Findings
from upslope.errors import KernelError
from upslope.kernels import gemm
from upslope.kernels.build import native

GIB = 2**30
_PACKAGES = ("upslope", "torch", "transformers", "safetensors", "tokenizers", "numpy")
_EXTRAS = {
    "embedded": ("gguf", "accelerate"),
    "lora": ("peft",),
    "data": ("datasets", "pyarrow"),
    "tasks": ("reasoning_gym",),
}


def examine_machine(findings: Findings) -> None:
    """Versions, devices, threads, compiler and memory as findings."""
    for check in (_versions, _devices, _threads, _compiler, _memory):
        with findings.check("machine"):
            check(findings)


def _versions(findings: Findings) -> None:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    extras = [extra for extra, packages in _EXTRAS.items() if all(find_spec(package) for package in packages)]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = f"Python {platform.python_version()}, {named}; extras: {', '.join(extras) or 'none'}"
    findings.add("versions", "ok", text, python=platform.python_version(), **versions, extras=extras)


def _devices(findings: Findings) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    text = f"{_processor()} ({capability}); CUDA devices: {', '.join(gpus) or 'none'}"
    findings.add("devices", "ok", text, processor=_processor(), capability=capability, cuda=gpus)


def _threads(findings: Findings) -> None:
    threads, cores = torch.get_num_threads(), usable_cores()
    values: dict[str, Any] = {"threads": threads, "cores": cores, "load": os.getloadavg()[0]}
    text = f"{threads} threads on {cores} usable cores"
    if threads > cores:
        mend = f"export OMP_NUM_THREADS={cores}: more threads than cores wait for each other at every product"
        findings.add("threads", "warning", text, mend, **values)
    elif threads < cores:
        mend = f"export OMP_NUM_THREADS={cores} to use all cores, unless others need them"
        findings.add("threads", "warning", text, mend, **values)
    else:
        findings.add("threads", "ok", text, **values)


def _compiler(findings: Findings) -> None:
    products = f"products of the update by {gemm.backend()}"
    try:
        native()
    except KernelError as error:
        text = f"sampling takes slower kernels, because {error}; {products}"
        findings.add("compiler", "warning", text, "install g++ (Debian: apt-get install g++), or set CXX")
    else:
        findings.add("compiler", "ok", f"sampling kernels are compiled and give PyTorch's numbers; {products}")


def _memory(findings: Findings) -> None:
    total, free = total_bytes(), available_bytes()
    text = f"{free / GIB:.1f} GiB free for a run, of {total / GIB:.1f} GiB"
    findings.add("memory", "ok", text, total_bytes=total, available_bytes=free)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_bytes() -> int:
    """Memory of the machine, or of the control group where that is less."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _group_limit())


def available_bytes() -> int:
    """What a process started now could take: the free memory and what this process holds, within the control group."""
    lines = _lines(Path("/proc/meminfo"))
    free = int(lines["MemAvailable"]) * 1024 if "MemAvailable" in lines else total_bytes()
    return min(free + resident_bytes(), _group_limit())


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    return int(_lines(Path("/proc/self/status")).get("VmRSS", 0)) * 1024


def _lines(path: Path) -> dict[str, str]:
    """The first word behind each name of a listing of /proc."""
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name.strip(): value.split()[0] for name, _, value in pairs if value.strip()}


def _group_limit() -> int:
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return sys.maxsize if text == "max" else int(text)


def _processor() -> str:
    return _whole(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()


def _whole(path: Path, name: str) -> str:
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
