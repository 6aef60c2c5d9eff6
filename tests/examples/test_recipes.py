"""The examples stay runnable: each recipe validates, and each example runs two steps on a tiny model."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

import upslope
from upslope.training.launch import launch

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(EXAMPLES.rglob("*.toml"))
TINY = {"causal": "tiny-llama", "seq2seq": "tiny-bart", "classifier": "tiny-bert", "tagger": "tiny-bert"}
SMALL = {
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "sampling.max_new_tokens": 4,
    "evaluation.num_prompts": 2,
    "evaluation.every_steps": 2,
    "reward.isolation": "none",
}


def run_recipe(path, folder, **overrides):
    if "reasoning" in path.name:
        pytest.importorskip("reasoning_gym")
        overrides |= {"task.options.size": 20, "task.options.num_eval": 5}
    recipe = upslope.Recipe.load(path)
    if "UPSLOPE_DATA" in str(recipe.task.options):
        request_data()
        overrides |= {"task.options.limit": 300 if "num_labelled" in recipe.task.options else 8}
        overrides |= {"task.options.num_eval": 4, "task.options.strict": False}
        overrides |= {"task.options.num_labelled": 200} if "num_labelled" in recipe.task.options else {}
    if path.stem == "summary":  # the tiny model's characters are more than its context holds
        overrides |= {
            f"task.options.{name}": str(short(recipe.task.options[name], folder)) for name in ("path", "eval")
        }
        overrides |= {"task.options.system": "none"}
    overrides |= {"model.mark_case": False}  # the tiny models know capitals
    overrides = {"model.name": TINY[recipe.model.kind], **SMALL, "run.folder": str(folder), **overrides}
    return launch(upslope.Recipe.load(path, overrides))


def short(path, folder):
    """The file's first dialogues, cut to a hundred characters."""
    source = Path(os.path.expandvars(path))
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:8]]
    target = folder.with_name(source.name)
    target.write_text("".join(json.dumps(row | {"dialogue": row["dialogue"][:100]}) + "\n" for row in rows))
    return target


def request_data():
    """Recipes on real data need its folder."""
    if not os.environ.get("UPSLOPE_DATA"):
        pytest.skip("UPSLOPE_DATA is not set: the folder that holds models/stories260k and data/")


def test_there_are_recipes():
    assert {path.name for path in RECIPES} >= {"grpo_arithmetic.toml", "1_supervised.toml", "2_ppo.toml"}


@pytest.mark.filterwarnings("ignore:.*their ends are cut")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_two_steps_and_evaluates(path, tmp_path):
    run = run_recipe(path, tmp_path / "run")
    assert [step["step"] for step in run.history()] == [1, 2]
    assert not any(step.get("skipped") for step in run.history())
    assert set(run.metrics["evaluate/metric"]) == {0, 2}
    assert (run.model_path / "config.json").is_file()


def test_ppo_starts_from_the_supervised_model(tmp_path):
    """The second recipe of sft_then_ppo reads the folder that the first one wrote, and names it as they stand."""
    first, second = (
        upslope.Recipe.load(EXAMPLES / "sft_then_ppo" / f"{name}.toml") for name in ("1_supervised", "2_ppo")
    )
    assert second.model.name == f"{first.run.folder}/model"
    warm = run_recipe(EXAMPLES / "sft_then_ppo" / "1_supervised.toml", tmp_path / "sft")
    run = run_recipe(EXAMPLES / "sft_then_ppo" / "2_ppo.toml", tmp_path / "ppo", **{"model.name": str(warm.model_path)})
    assert abs(run.metrics["kl"][1]) < 1e-5  # the reference is the warm-started model itself


@pytest.mark.parametrize("name", ["quickstart", "trl_reward"])
def test_script_trains_two_steps(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module(name)
    small = {"steps": 2, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 4, "num_prompts": 2}
    if name == "quickstart":
        small["every_steps"] = 2
    run = example.main("tiny-llama", run=tmp_path / "run", isolation="none", **small)
    assert len(run.history()) == 2
    assert "2 training steps" in capsys.readouterr().out


def test_trl_reward_function_is_called_as_trl_calls_it(monkeypatch):
    """Lists of chats, ids and columns in, one float or None a row out."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    trl_reward = importlib.import_module("trl_reward")
    completions = [[{"role": "assistant", "content": text}] for text in ("It is 4.", "four", "red")]
    assert trl_reward.accuracy_reward(["", "", ""], completions, ["4", "4", None]) == [1.0, 0.0, None]
    assert trl_reward.brief_reward(completions, [[7, 8], [7], []]) == [-0.02, -0.01, 0.0]
