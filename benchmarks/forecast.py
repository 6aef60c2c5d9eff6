"""The doctor's memory forecast beside the measured peak of real runs: python benchmarks/forecast.py [RECIPE ...].

Each recipe trains for two steps in a process of its own, whose peak (VmHWM) is read; the forecast comes from another
process, that of `upslope doctor`. A ratio above 1 is more memory than was foretold. Without arguments: the quickstart's
recipe and those in forecast/.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from harness import FOLDER, GIB, arguments
from results import plain, report
from worker import peak_bytes

STEPS = 2


def forecast_of(recipe: Path) -> int:
    """Bytes of the forecast finding of `upslope doctor`."""
    program = "from upslope.cli.main import run; run()"
    command = [sys.executable, "-c", program, "doctor", str(recipe), "--json", "--prompts", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = json.loads(ended.stdout)["findings"]
    found = next((each["values"]["bytes"] for each in findings if each["check"] == "forecast"), None)
    if not found:
        raise SystemExit(f"the doctor forecast nothing for {recipe}: {findings}")
    return int(found)


def measured(recipe: Path) -> int:
    """The peak of a process that trains the recipe for STEPS steps."""
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
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("recipes", nargs="*", type=Path)
    options = parser.parse_args()
    chosen = {path.stem: path for path in options.recipes} or recipes()
    cases = []
    for name, path in chosen.items():
        foretold, peak = forecast_of(path) / GIB, measured(path) / GIB
        print(f"  {name}: {foretold:.2f} GiB foretold, {peak:.2f} measured", file=sys.stderr, flush=True)
        cases.append(plain(name, foretold, peak, unit="GiB", peer_name="measured peak"))
    report("forecast", cases, results=options.results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(*sys.argv[2:])
    else:
        main()
