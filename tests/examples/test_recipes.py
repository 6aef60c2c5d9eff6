"""The examples stay runnable: each recipe validates, and each example runs two steps on a tiny model."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

import upslope
from upslope.policies.loading import load_policy
from upslope.rewards import Sandbox
from upslope.rewards.sandbox.confinement import missing
from upslope.training.launch import launch

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path for path in EXAMPLES.rglob("*.toml") if path.name != "space.toml")
TINY = {"causal": "tiny-llama", "seq2seq": "tiny-bart", "classifier": "tiny-bert", "tagger": "tiny-bert"}
HELD = {"critic": None, "keep_reference": False, "dtype": "float32", "lora": None, "freeze": ()}
HELD |= {"gradient_checkpointing": False, "device": "cpu", "seed": 0}
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
    if "passes_tests" in str(recipe.reward.functions) and missing():
        pytest.skip(f"this machine lacks {missing()} for the sandbox")
    if "UPSLOPE_DATA" in str(recipe.task.options):
        request_data()
        overrides |= {"task.options.limit": 300 if "num_labelled" in recipe.task.options else 8}
        overrides |= {"task.options.num_eval": 4, "task.options.strict": False}
        overrides |= {"task.options.num_labelled": 200} if "num_labelled" in recipe.task.options else {}
    if path.stem in (
        "summary",
        "hh_reward_model",
        "hh_ppo",
    ):  # the tiny model's characters are more than its context holds
        overrides |= {
            f"task.options.{name}": str(short(recipe.task.options[name], folder)) for name in ("path", "eval")
        }
        overrides |= {"task.options.system": "none"} if path.stem == "summary" else {"model.max_length": "none"}
    if "reward.functions" not in overrides and "runs/" in str(recipe.reward.functions):
        overrides |= {"reward.functions": [tiny_reward(function, folder) for function in recipe.reward.functions]}
    overrides |= {"model.mark_case": False}  # the tiny models know capitals
    overrides = {"model.name": TINY[recipe.model.kind], **SMALL, "run.folder": str(folder), **overrides}
    return launch(upslope.Recipe.load(path, overrides))


def tiny_reward(function, folder):
    """The reward with random tiny models in the place of runs."""
    if isinstance(function, str) and function.startswith("model:"):
        model = folder.with_name("reward_model")
        load_policy("tiny-bert", kind="reward", labels=("reward",), **HELD).save(model)
        return f"model:{model}"
    if isinstance(function, dict) and "reference" in function:
        return function | {"model": "tiny-llama", "reference": "tiny-gpt2"}
    return function


def short(path, folder):
    """The file's first rows, their texts cut to a hundred characters."""
    source = Path(os.path.expandvars(path))
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:8]]
    target = folder.with_name(source.name)
    cut = [{k: v[:100] if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    target.write_text("".join(json.dumps(row) + "\n" for row in cut))
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


def test_the_recipes_of_learned_rewards_are_chained(tmp_path, monkeypatch):
    """Each second half reads what its first half wrote, by the names that stand in the recipes."""
    monkeypatch.chdir(EXAMPLES.parent)
    folder = EXAMPLES / "learned_rewards"
    recipes = {path.stem: upslope.Recipe.load(path) for path in folder.glob("*.toml")}
    assert recipes["2_ppo"].reward.functions[0] == f"model:{recipes['1_reward_model'].run.folder}"
    first = recipes["3_inverse"].run.folder
    assert recipes["4_ppo"].reward.functions[0]["model"] == first
    assert recipes["4_ppo"].model.name == f"{first}/model"
    scored = run_recipe(folder / "1_reward_model.toml", tmp_path / "rm")
    paid = run_recipe(folder / "2_ppo.toml", tmp_path / "ppo", **{"reward.functions": [f"model:{scored.folder}"]})
    assert set(paid.metrics["reward/reward_model"]) == set(paid.metrics["gold"]) == {1, 2}
    explained = run_recipe(folder / "3_inverse.toml", tmp_path / "inverse")
    reward = {"function": "implicit", "model": str(explained.folder), "reference": "tiny-llama"}
    paid = run_recipe(folder / "4_ppo.toml", tmp_path / "rl", **{"reward.functions": [reward]})
    assert set(paid.metrics["reward/implicit"]) == {1, 2}


def test_the_ratings_are_those_that_their_script_writes(tmp_path, monkeypatch):
    """The store in the repository, but for its times: not mended by hand, and in the page's format of today."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "learned_rewards"))
    store = importlib.import_module("make_ratings").main(tmp_path / "ratings.jsonl")
    written, kept = (
        [json.loads(line) | {"time": 0} for line in path.read_text().splitlines()]
        for path in (store.path, EXAMPLES / "learned_rewards" / "ratings.jsonl")
    )
    assert written == kept


@pytest.mark.skipif(missing() is not None, reason=f"this machine lacks {missing()} for the sandbox")
def test_the_problems_of_code_have_solutions():
    """Each solution passes all tests of its own problem, and none of the next one's."""
    texts = [path.read_text() for path in sorted((EXAMPLES / "code").glob("*.jsonl"))]
    problems = [json.loads(line) for line in "".join(texts).splitlines()]
    sandbox = Sandbox(timeout_s=20)
    for problem, other in zip(problems, problems[1:] + problems[:1], strict=True):
        verdict = sandbox.run(problem["solution"], problem["tests"], every=True)
        assert verdict.passed == verdict.total == 3, problem
        assert sandbox.run(other["solution"], problem["tests"], every=True).passed == 0
    sandbox.close()


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
