"""Building the compiled kernels, and everything that can be wrong with a compiler or a cache."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from upslope.errors import KernelError
from upslope.kernels import build
from upslope.kernels.linear import NativeLinear


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and nothing remembered of earlier builds."""
    monkeypatch.setenv("UPSLOPE_CACHE", str(tmp_path))
    build._load_once.cache_clear()
    yield tmp_path / "kernels"
    build._load_once.cache_clear()


def compiler(folder, script):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def built(folder):
    (library,) = folder.glob("native-*.so")
    return library


def test_built_once_and_found_again(fresh):
    build.native()
    first = built(fresh).stat()
    build._load_once.cache_clear()
    build.native()
    assert built(fresh).stat() == first
    assert [path.suffix for path in sorted(fresh.iterdir())] == [".sha256", ".so"]


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match=r"no C\+\+ compiler is installed \(looked for g\+\+, clang\+\+, c\+\+\)"):
        build.native()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "does not run"),
        (
            'case "$1" in --version) echo 1;; *) echo "x.cpp:1: error: broken" >&2; exit 1;; esac',
            "fails: .*error: broken",
        ),
        ('case "$1" in --version) echo 1;; esac', "fails: it wrote nothing"),
        (
            'case "$1" in --version) echo 1;; *) for last; do :; done; echo garbage > "$last";; esac',
            "cannot be kept or loaded",
        ),
    ],
)
def test_a_broken_compiler(fresh, monkeypatch, tmp_path, script, problem):
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    with pytest.raises(KernelError, match=problem):
        build.native()


@pytest.mark.parametrize(
    ("right", "wrong", "what"),
    [
        ("left[r] += x[r * K + k] * a", "left[r] += x[r * K + k] * a * 1.5f", "products"),
        ("(bias ? bias[c] : 0.0f)", "0.0f", "products"),
        ("x[i] = a * cos[i] - b * sin[i]", "x[i] = a * cos[i] + b * sin[i]", "attention"),
        ("last + 1 - window", "last - window", "attention"),
        ("count == 3 ? attend_heads<3>", "count == 3 ? attend_heads<2>", "attention"),
    ],
)
def test_a_compiler_that_compiles_something_else(fresh, monkeypatch, tmp_path, right, wrong, what):
    """Kernels that give other numbers than PyTorch are not used."""
    text = build._SOURCE.read_text()
    assert right in text
    source = tmp_path / "wrong.cpp"
    source.write_text(text.replace(right, wrong))
    monkeypatch.setattr(build, "_SOURCE", source)
    monkeypatch.setattr(build, "_FLAGS", [flag for flag in build._FLAGS if flag != "-O3"])  # builds in less time
    with pytest.raises(KernelError, match=f"compute wrong {what}"):
        build.native()


def test_a_compiler_named_in_several_words_and_one_whose_library_lacks_a_function(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "env g++")
    build.native()
    build._load_once.cache_clear()
    source = tmp_path / "other.cpp"
    source.write_text("int nothing;")
    monkeypatch.setattr(build, "_SOURCE", source)
    with pytest.raises(KernelError, match=r"cannot be kept or loaded: .*panel_columns"):
        build.native()


def test_a_folder_that_others_can_write_to_is_not_loaded_from(fresh):
    build.native()
    fresh.chmod(0o777)
    build._load_once.cache_clear()
    with pytest.raises(KernelError, match="can be written by others"):
        build.native()


def test_a_damaged_checksum_is_no_checksum(fresh):
    build.native()
    built(fresh).with_suffix(".sha256").write_bytes(b"\xff\xfe garbage")
    build._load_once.cache_clear()
    build.native()


def test_torchs_default_dtype_changes_no_kernel(fresh, monkeypatch):
    torch.set_default_dtype(torch.float64)
    try:
        build.native()
        layer = NativeLinear()
        x, weight = torch.randn(3, 16, dtype=torch.float32), torch.randn(40, 16, dtype=torch.float32)
        layer.load([weight], [None])
        torch.testing.assert_close(layer(x), x @ weight.T)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_half_written_cache_is_built_again(fresh, keep):
    build.native()
    library = built(fresh)
    whole = library.read_bytes()
    library.unlink()  # the process has it mapped: the damage is done to another file of that name
    library.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    build._load_once.cache_clear()
    build.native()
    assert library.read_bytes() == whole


def test_a_cache_that_cannot_be_written(fresh, monkeypatch):
    fresh.parent.joinpath("kernels").write_text("a file where the folder should be")
    with pytest.raises(KernelError, match="cannot be kept or loaded"):
        build.native()


def test_processes_that_build_at_once(fresh):
    code = "from upslope.kernels.build import native; print(native().panel_columns())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(3)
    ]
    columns = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(columns) == 1
    assert sorted(path.suffix for path in fresh.iterdir()) == [".sha256", ".so"]
    build.native()


def test_the_key_follows_source_compiler_and_processor(fresh, monkeypatch, tmp_path):
    keys = {build._key(["g++"])}
    monkeypatch.setattr(build, "_processor", lambda: "another")
    keys.add(build._key(["g++"]))
    monkeypatch.setattr(build, "_FLAGS", ["-O1"])
    keys.add(build._key(["g++"]))
    keys.add(build._key([compiler(tmp_path, "echo 99.0")]))
    copy = Path(tmp_path / "native.cpp")
    copy.write_text(build._SOURCE.read_text() + "\n")
    monkeypatch.setattr(build, "_SOURCE", copy)
    keys.add(build._key(["g++"]))
    assert len(keys) == 5


def test_the_kernels_run_on_the_threads_of_torch(fresh):
    """One OpenMP runtime: another one's threads would fight over the cores with torch's."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc to look at")
    script = (
        "import torch; from upslope.kernels import build; build.native(); torch.ones(4).sum();"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert len(eval(told)) == 1
