"""Which advantage estimator is near the truth on SmolLM2: python benchmarks/estimators.py [--limit 4].

The quickstart's recipe, half of its steps, so that something is left to learn; then `upslope evaluate --estimators`
on it: training and held-out sums, differences as another task, the base model's rows as the shifted policy. Writes the
whole report and its page beside the figures. --limit N is a trial: N steps, N prompts a place, few branches.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
import tomllib
from importlib.resources import files
from pathlib import Path

from results import RESULTS, machine

from upslope import Recipe
from upslope.evaluation.estimators import judge_estimators
from upslope.tasks.loading import load_task
from upslope.training.launch import launch

STEPS, PROMPTS, BRANCHES = 35, 64, 24


def recipe_of(folder: str, steps: int) -> Recipe:
    """The quickstart's, of so many steps, measured at neither end."""
    values = tomllib.loads(files("upslope.cli").joinpath("quickstart.toml").read_text(encoding="utf-8"))
    values["run"]["folder"] = folder
    changes = {"steps": steps, "max_train_s": "none", "evaluation.every_steps": "none", "trackers": []}
    return Recipe.resolve(values, changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="a trial of this size")
    parser.add_argument("--run", type=Path, help="judge this run instead of training one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write estimators.json to")
    options = parser.parse_args()
    started = time.perf_counter()
    run = options.run or launch(recipe_of(f"{tempfile.mkdtemp()}/run", options.limit or STEPS))
    trained_s = time.perf_counter() - started
    found = judge_estimators(
        run,
        other=load_task("arithmetic", {"operation": "-"}),
        shifted="smollm2-135m-instruct",
        num_prompts=options.limit or PROMPTS,
        branches=4 if options.limit else BRANCHES,
    )
    judged_s = time.perf_counter() - started - trained_s
    document = {"benchmark": "estimators", "measured": datetime.date.today().isoformat(), "machine": machine()}
    document |= {"trained_s": trained_s, "judged_s": judged_s, "report": found.as_dict()}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "estimators.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.results / "estimators.html").write_text(found.document().html(), encoding="utf-8")
    print(found.document().markdown())
    print(f"trained in {trained_s:.0f} s, judged in {judged_s:.0f} s")


if __name__ == "__main__":
    main()
