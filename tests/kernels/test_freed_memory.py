"""Freed memory stays with the process within the context, and goes back to the system after it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from upslope.kernels import memory
from upslope.kernels.memory import freed_memory_kept

MIB = 1 << 20


def resident():
    statm = Path("/proc/self/statm")
    if memory._glibc() is None or not statm.exists():
        pytest.skip("no glibc, or no /proc to look at")
    return int(statm.read_text().split()[1]) * 4096


def touched(mebibytes=256):
    return torch.ones(mebibytes * MIB // 4)


def test_freed_memory_is_kept_and_then_given_back():
    """In a process of its own: in a heap that other tests have used, a hole may be where the tensor would fit."""
    resident()
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def kept_and_then_given_back():
    before = resident()
    tensor = touched()
    assert resident() - before > 250 * MIB
    del tensor
    assert resident() - before < 50 * MIB
    with freed_memory_kept():
        tensor = touched()
        del tensor
        assert resident() - before > 250 * MIB
        tensor = touched(240)  # aligned memory is looked for with room to spare, which what was freed has not got
        assert resident() - before < 300 * MIB  # the same memory again
        del tensor
    assert resident() - before < 50 * MIB
    tensor = touched()
    del tensor
    assert resident() - before < 50 * MIB


def test_another_c_library_changes_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with freed_memory_kept():
        assert float(touched().sum()) == 64 * MIB


if __name__ == "__main__":
    kept_and_then_given_back()
