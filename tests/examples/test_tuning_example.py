"""examples/tuning on a tiny model, from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope.cli.main import app
from upslope.recipe import Recipe

pytest.importorskip("optuna")

EXAMPLE = Path(__file__).parents[2] / "examples" / "tuning"
TINY = {
    "model.name": "tiny-llama",
    "task.options.num_train": 40,
    "task.options.num_eval": 12,
    "training.steps": 2,
    "prompts_per_step": 2,
    "max_new_tokens": 2,
    "every_steps": 1,
    "reward.isolation": "none",
    "run.trackers": [],
}


def test_the_example_tunes_and_its_recipe_can_be_trained(tmp_path):
    command = ["tune", str(EXAMPLE / "recipe.toml"), "--space", str(EXAMPLE / "space.toml"), "--trials", "3", "--json"]
    for name, value in TINY.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    result = CliRunner().invoke(app, [*command, "--folder", str(tmp_path / "tuning")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [trial["state"] for trial in found["trials"]].count("finished") >= 1
    assert (found["num_prompts"], found["num_fresh_prompts"]) == (8, 4)
    assert len({trial["values"]["algorithm.preset"] for trial in found["trials"]}) == 2
    best = Recipe.load(tmp_path / "tuning" / "best.toml")
    assert best.algorithm.preset == found["values"]["algorithm.preset"]
    assert best.optimizer.lr == found["values"]["optimizer.lr"]
