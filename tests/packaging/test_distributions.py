"""What is built: a wheel with every file of the package, and an sdist that this wheel can be built from.

`make dist-check` installs it into a clean environment and tries it there (smoke.py).
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import upslope

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "upslope"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(names in the wheel, its METADATA and entry points, names in the sdist); the wheel is built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
        (entry,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    with tarfile.open(sdist) as archive:
        return names, about, entry, archive.getnames()


def files_of(folder):
    """Files that git knows or would add, so that caches and leftovers do not count."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", str(folder)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built):
    names, *_ = built
    inside = {f"src/{name}" for name in names if ".dist-info/" not in name}
    assert inside == files_of(PACKAGE)
    assert {"src/upslope/py.typed", "src/upslope/kernels/native.cpp", "src/upslope/cli/quickstart.toml"} <= inside


def test_the_wheel_says_what_it_is(built):
    _, about, entry, _ = built
    lines = about.splitlines()
    for expected in (
        "Name: upslope",
        f"Version: {upslope.__version__}",
        "Requires-Python: >=3.11",
        "License-Expression: Apache-2.0",
        "Classifier: Typing :: Typed",
        "Provides-Extra: embedded",
    ):
        assert expected in lines
    assert "upslope = upslope.cli.main:run" in entry


def test_the_sdist_holds_what_its_tests_need(built):
    *_, names = built
    inside = {name.partition("/")[2] for name in names}
    for expected in ("pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "src/upslope/py.typed"):
        assert expected in inside
    for folder in ("tests", "examples", "docs", "benchmarks"):
        assert files_of(ROOT / folder) <= inside, folder
    assert not any(name.startswith((".ci", ".git/", ".venv", "runs/")) for name in inside)
