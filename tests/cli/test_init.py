"""`upslope init`: five answers become a commented recipe that trains."""

import io
import sys
import tomllib

import pytest

from upslope.presets import PRESETS
from upslope.recipe import Recipe
from upslope.report.run import Run

TINY = {"--model": "tiny-llama", "--minutes": "1"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with two data files, to write recipes to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cities.jsonl").write_text(
        '{"prompt": "The capital of France is", "city": "Paris"}\n{"prompt": "Of Italy it is", "city": "Rome"}\n'
    )
    (tmp_path / "sums.csv").write_text("prompt,answer\n1 + 1,2\n2 + 2,4\n")
    return tmp_path


@pytest.fixture
def init(upslope):
    """`upslope init recipe.toml --yes` with options: (exit status, output, the error's sentence)."""

    def call(**options):
        given = {**TINY, **{f"--{name}": value for name, value in options.items()}}
        status, out, err = upslope("init", "recipe.toml", "--yes", *(p for pair in given.items() for p in pair))
        return status, out, err.removeprefix("error: ").strip()

    return call


def train(upslope, *settings):
    small = ("steps=2", "prompts_per_step=2", "num_prompts=2", "max_new_tokens=4", "folder=run", *settings)
    return upslope("train", "recipe.toml", *(part for setting in small for part in ("--set", setting)))


def test_five_times_enter_gives_a_recipe_that_trains(upslope, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * 5))
    status, out, _ = upslope("init")
    assert status == 0
    assert out.count("[") >= 5  # each question shows its default
    assert "upslope doctor recipe.toml" in out
    recipe = Recipe.load("recipe.toml")
    assert (recipe.model.name, recipe.task.name, recipe.algorithm.preset) == (
        "smollm2-135m-instruct",
        "arithmetic",
        "ppo",
    )
    assert recipe.training.max_train_s == 300
    status, _, err = train(upslope, "model.name=tiny-llama")
    assert status == 0, err
    assert [event["step"] for event in Run.open("run").events("train")] == [1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"task": "arithmetic", "functions": ()}),
        ({"task": "cities.jsonl"}, {"task": "file", "functions": ("contains", "city")}),
        ({"task": "sums.csv", "algorithm": "grpo"}, {"task": "file", "functions": ("numeric_answer", None)}),
        ({"task": "sums.csv", "reward": "exact_match"}, {"task": "file", "functions": ("exact_match", None)}),
        ({"task": "reasoning-gym:chain_sum"}, {"task": "reasoning-gym", "functions": ()}),
        ({"task": "own:task", "reward": "own:score"}, {"task": "own:task", "functions": ("own:score", None)}),
    ],
)
def test_answers_become_a_recipe_that_trains_two_steps(init, upslope, folder, options, expected):
    if "gym" in options.get("task", ""):
        pytest.importorskip("reasoning_gym")
    (folder / "own.py").write_text(
        "import upslope\n\ndef score(completion):\n    return float(len(completion))\n\n"
        "def task():\n    return upslope.Task(prompts=['a', 'b'], reward=score)\n"
    )
    status, _, problem = init(**options)
    assert status == 0, problem
    recipe = Recipe.load("recipe.toml")
    assert recipe.task.name == expected["task"]
    named = tuple((f["function"], f.get("column")) for f in recipe.reward.functions)
    assert named == ((expected["functions"],) if expected["functions"] else ())
    status, _, err = train(upslope)
    assert status == 0, err
    assert [event["step"] for event in Run.open("run").events("train")] == [1, 2]
    assert not any(event.get("skipped") for event in Run.open("run").events("train"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_valid_recipe(init, preset):
    assert init(algorithm=preset)[0] == 0
    assert Recipe.load("recipe.toml").algorithm.preset == preset


def test_every_section_says_what_its_settings_do(init, folder):
    init(task="cities.jsonl")
    lines = (folder / "recipe.toml").read_text().splitlines()
    assert set(tomllib.loads("\n".join(lines))) >= {"model", "task", "reward", "algorithm", "sampling", "optimizer"}
    for number, line in enumerate(lines):
        if line.startswith("[") and line != "[task]":
            assert lines[number + 1].startswith("#"), line


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "tiny-lama"}, "did you mean 'tiny-llama'?"),
        ({"model": "no/such/folder"}, "model 'no/such/folder' is no folder"),
        ({"task": "arithmetik"}, "did you mean 'arithmetic'?"),
        ({"task": "city.jsonl"}, "there is no file 'city.jsonl'; did you mean 'cities.jsonl'?"),
        ({"task": "cities"}, "did you mean 'cities.jsonl'?"),
        ({"task": "nowhere:task"}, "there is no module 'nowhere'"),
        ({"task": "sums.csv", "reward": "exact-match"}, "did you mean 'exact_match'?"),
        ({"algorithm": "ppoo"}, "did you mean 'ppo'?"),
        ({"minutes": "0"}, "the time is '0.0', but must be minutes above 0"),
    ],
)
def test_a_wrong_answer_is_told_at_once_and_nothing_is_written(init, folder, options, sentence):
    status, _, problem = init(**options)
    assert status == 2
    assert sentence in problem
    assert not (folder / "recipe.toml").exists()


def test_a_wrong_answer_is_asked_for_again(upslope, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("tiny-lama\ntiny-llama\n\n\n\n\n"))
    status, out, _ = upslope("init")
    assert status == 0
    assert "did you mean 'tiny-llama'?" in out
    assert Recipe.load("recipe.toml").model.name == "tiny-llama"


def test_data_without_anything_to_compare_with_needs_a_reward(init, folder):
    (folder / "bare.jsonl").write_text('{"prompt": "Say something"}\n')
    status, _, problem = init(task="bare.jsonl")
    assert (status, problem) == (2, "there is no default reward here; give --reward")


def test_a_file_that_is_there_is_kept_unless_forced(init, upslope, folder):
    (folder / "recipe.toml").write_text("mine")
    status, _, problem = init()
    assert status == 2
    assert "--force" in problem
    assert (folder / "recipe.toml").read_text() == "mine"
    assert upslope("init", "--yes", "--force")[0] == 0
    assert Recipe.load("recipe.toml").task.name == "arithmetic"
    assert upslope("init", folder / "missing" / "recipe.toml", "--yes")[2].count("cannot be written") == 1
