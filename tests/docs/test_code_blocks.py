"""What the pages and the README show works: recipes validate, Python runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch

import upslope
from upslope.cli.main import app
from upslope.tuning.space import Space

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


SPACES = ROOT / "docs" / "tuning.md"
RECIPES = [
    pytest.param(text, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, text in enumerate(blocks(page, "toml"))
    if page != SPACES
]


def test_there_are_recipes_to_check():
    assert len(RECIPES) >= 5


@pytest.mark.parametrize("text", RECIPES)
def test_recipe_in_the_documentation_validates(text):
    recipe = upslope.Recipe.resolve(tomllib.loads(text))
    assert recipe.to_toml()


def test_spaces_in_the_documentation_fit_the_recipe_beside_them():
    spaces = blocks(SPACES, "toml")
    assert spaces
    for text in spaces:
        Space.read(text).check(upslope.Recipe.load(ROOT / "examples" / "tuning" / "recipe.toml"))


def test_readme_trains_from_python(tmp_path, monkeypatch):
    """The README's own lines, on a tiny model for two steps."""
    monkeypatch.chdir(tmp_path)
    first, second = blocks(ROOT / "README.md", "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 10
    small = first.replace("smollm2-135m-instruct", "tiny-llama").replace('"steps": 20', '"steps": 2')
    small = small.replace('"prompts_per_step": 8', '"prompts_per_step": 2')
    assert small.count("tiny-llama") == small.count('"steps": 2}') == small.count('"prompts_per_step": 2') == 1
    names = {}
    exec(compile(small + "\n" + second, "README.md", "exec"), names)
    assert set(names["run"].metrics["reward"]) == {1, 2}
    assert names["task"].terms[0].shape == "batch"


def test_estimators_page_runs():
    """Every block in order: the numbers are finite, the round trip is exact, and the oracle's own assertion holds."""
    blocks_of_page = blocks(ROOT / "docs" / "estimators-and-losses.md", "python")
    names = {
        "upslope": upslope,
        "padded": torch.arange(6.0).view(2, 3),
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "new_values": torch.tensor([0.1, 0.4, 0.7, 0.1, 0.3], requires_grad=True),
        "logprobs": torch.full((5,), -1.0, requires_grad=True),
        "old_logprobs": torch.full((5,), -1.0),
    }
    for text in blocks_of_page:
        exec(compile(text, "estimators-and-losses.md", "exec"), names)
    assert names["packed"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    # by hand, for the second row: d = 0.5 + 0.4 - 0.3, then 0.3 - 0.1 + 0.95 d
    assert names["returns"][3:].tolist() == pytest.approx([0.1 + 0.2 + 0.95 * 0.6, 0.3 + 0.6])


def test_documented_commands_exist():
    known = {command.callback.__name__ for command in app.registered_commands}
    shown = {name for page in PAGES for name in re.findall(r"^\$ upslope (\w+)", page.read_text(), re.MULTILINE)}
    assert shown
    assert shown <= known
