"""The quickstart's wall time beside that of the commit before upslope was made fast: python benchmarks/quickstart.py.

The same recipe (seed, steps, samples, held-out sums) run once by this code and once by the code of --before, taken out
of git into a folder of its own. Seconds are of training; what was learned stands in the notes, for time means nothing
without it. --before none leaves the older side out, which alone takes five minutes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness import FOLDER, Side, arguments, measure
from results import compare, report

BEFORE = "9f209fc"
SUMMARY = re.compile(r"quickstart: before=(\S+) after=(\S+) .* train_s=(\d+)")


def run(turn: Any, *, source: str) -> None:
    """`upslope quickstart` of the package that lies in a source folder."""
    import os
    import sys

    from worker import peak_bytes_of_children

    answer: dict[str, float] = {}
    while True:
        turn(**answer)
        command = [sys.executable, "-c", "from upslope.cli.main import run; run()"]
        folder = tempfile.mkdtemp()
        finished = subprocess.run(
            [*command, "quickstart", "--folder", f"{folder}/run"],
            env=os.environ | {"PYTHONPATH": source},
            capture_output=True,
            text=True,
            check=False,
        )
        found = SUMMARY.search(finished.stdout)
        if found is None:
            raise SystemExit(f"quickstart gave no summary: {finished.stderr[-500:]}")
        before, after, seconds = map(float, found.groups())
        answer = {"seconds": seconds, "before": before, "after": after}
        answer["peak_bytes"] = peak_bytes_of_children()


def source_of(commit: str) -> str:
    """The package's source at a commit, taken out of git."""
    target = Path(tempfile.mkdtemp(prefix=f"upslope-{commit}-"))
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=FOLDER.parent, capture_output=True, check=False)
    if archive.returncode:
        raise SystemExit(f"git has no commit {commit} here ({archive.stderr.decode().strip()}); use --before none")
    subprocess.run(["tar", "--extract", "--directory", str(target)], input=archive.stdout, check=True)
    return str(target / "src")


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with, or none")
    options = parser.parse_args()
    sides = [Side("upslope", __file__, "run", {"source": str(FOLDER.parent / "src")})]
    if options.before != "none":
        sides.append(Side(f"upslope at {options.before}", __file__, "run", {"source": source_of(options.before)}))
    own, *before = measure(sides, repeats=options.repeats, warmups=0, peers=options.peers)
    notes = [
        f"{result.side.name}: held-out accuracy {answer['before']:.2f} -> {answer['after']:.2f}"
        for result in (own, *before)
        for answer in result.answers
    ]
    case = compare("quickstart", own, before[0] if before else None, unit="s of training")
    report("quickstart", [case], results=options.results, notes=notes)


if __name__ == "__main__":
    main()
