"""Tries an installed upslope as a user would: python -I smoke.py SOURCE, in an environment that holds nothing else.

SOURCE is the package's folder in the repository, whose every file has to be installed. Needs the standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

PROGRAM = str(Path(sys.executable).parent / "upslope")


def upslope(*arguments: str, **environment: str) -> str:
    """What a command prints; it has to succeed."""
    ended = subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if ended.returncode:
        raise SystemExit(f"upslope {' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def shipped(source: Path) -> None:
    """Every file of the package lies among the installed ones, and none of them in the repository."""
    installed = Path(sysconfig.get_paths()["purelib"]) / "upslope"
    wanted = {
        path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    missing = sorted(str(path) for path in wanted if not (installed / path).is_file())
    assert not missing, f"the wheel lacks {missing}"
    assert {Path("py.typed"), Path("kernels/native.cpp"), Path("cli/quickstart.toml")} <= wanted


def commands(folder: Path) -> None:
    """From an empty folder to a trained, resumed and sampled model."""
    assert upslope("--version").strip() == f"upslope {metadata.version('upslope')}"
    completed = upslope("", _UPSLOPE_COMPLETE="complete_bash", COMP_WORDS="upslope tr", COMP_CWORD="1")
    assert completed.split() == ["train"], completed
    os.chdir(folder)
    upslope("init", "--yes", "--model", "tiny-llama", "--minutes", "5")
    report = json.loads(upslope("doctor", "recipe.toml", "--json"))
    assert report["healthy"], report
    small = ("--set", "num_prompts=4", "--set", "run.folder=first")
    upslope("train", "recipe.toml", "--set", "steps=2", *small)
    upslope("resume", "first", "--set", "steps=3")
    steps = [json.loads(line) for line in Path("first/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in steps if event["kind"] == "train"] == [1, 2, 3]
    assert upslope("generate", "first", "12 + 34", "--max-new-tokens", "4")
    assert "correct = " in upslope("evaluate", "first", "--num-prompts", "4")


def main() -> None:
    import upslope as package

    source = Path(sys.argv[1]).resolve()
    assert source not in Path(package.__file__).resolve().parents, "this is the repository, not what was installed"
    shipped(source)
    with tempfile.TemporaryDirectory() as folder:
        commands(Path(folder))
    print(f"upslope {package.__version__} from its wheel: installed whole, and every command works")


if __name__ == "__main__":
    main()
