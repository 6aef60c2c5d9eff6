"""The doctor's memory forecast beside the measured peak of real runs: python benchmarks/forecast.py [RECIPE ...].

Each recipe trains for two steps in a process of its own, whose peak (VmHWM) is read; the forecast comes from another
process, that of `upslope doctor`. Without arguments: the quickstart's recipe and those in forecast/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from harness import FOLDER, GIB
from results import RESULTS, machine
from worker import peak_bytes

STEPS = 2
COLUMNS = ("recipe", "forecast GiB", "measured GiB", "forecast / measured")


def forecast_of(recipe: Path) -> dict[str, Any]:
    """The forecast finding of `upslope doctor`, with its parts."""
    program = "from upslope.cli.main import run; run()"
    command = [sys.executable, "-c", program, "doctor", str(recipe), "--json", "--prompts", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = json.loads(ended.stdout)["findings"]
    found = next((each["values"] for each in findings if each["check"] == "forecast"), None)
    if not found:
        raise SystemExit(f"the doctor forecast nothing for {recipe}: {findings}")
    values: dict[str, Any] = found
    return values


def measured(recipe: Path) -> int:
    """The peak of a process that trains the recipe for three steps."""
    with tempfile.TemporaryDirectory(prefix="forecast-") as folder:
        command = [sys.executable, __file__, "--train", str(recipe), f"{folder}/run"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(ended.stdout.splitlines()[-1])


def train(recipe: str, folder: str) -> None:
    """One run in this process, and its peak in bytes."""
    from upslope.recipe import Recipe
    from upslope.training.launch import launch

    launch(Recipe.load(recipe, {"training.steps": STEPS, "run.folder": folder}))
    print(peak_bytes())


def recipes() -> dict[str, Path]:
    """The recipes that are measured without arguments."""
    own = sorted((FOLDER / "forecast").glob("*.toml"))
    return {"quickstart": Path(str(files("upslope.cli") / "quickstart.toml")), **{path.stem: path for path in own}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write forecast.json to")
    options = parser.parse_args()
    chosen = {path.stem: path for path in options.recipes} or recipes()
    cases = []
    for name, path in chosen.items():
        found, peak = forecast_of(path), measured(path)
        cases.append({"name": name, "forecast_bytes": found["bytes"], "measured_bytes": peak, "parts": found["parts"]})
        print(f"{name}: {found['bytes'] / GIB:.2f} / {peak / GIB:.2f} GiB", file=sys.stderr, flush=True)
    document = {"benchmark": "forecast", "measured": datetime.date.today().isoformat(), "machine": machine()}
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / "forecast.json"
    target.write_text(json.dumps({**document, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(table(cases))


def table(cases: list[dict[str, Any]]) -> str:
    """The cases as a Markdown table."""
    rows = [
        (
            case["name"],
            f"{case['forecast_bytes'] / GIB:.2f}",
            f"{case['measured_bytes'] / GIB:.2f}",
            f"{case['forecast_bytes'] / case['measured_bytes']:.2f}",
        )
        for case in cases
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(*sys.argv[2:])
    else:
        main()
