"""Spaces of settings: how they are written, what is refused, and what is drawn."""

import math
from collections import Counter

import numpy as np
import pytest

from upslope.errors import RecipeError
from upslope.recipe import Recipe
from upslope.tuning.space import Choice, Parameter, Range, Space, written

SPACE = """
optimizer.lr = { low = 1e-6, high = 1e-3, log = true }
algorithm.preset = ["ppo", "grpo", "rloo"]

[[when]]
if = { algorithm.preset = "ppo" }
algorithm.lam = { low = 0.8, high = 1.0 }
algorithm.epochs = { low = 1, high = 4 }

[[when]]
if = { algorithm.preset = ["grpo", "rloo"] }
group_size = [2, 4, 8]
"""


def test_a_file_lines_and_a_mapping_say_the_same(tmp_path):
    (tmp_path / "space.toml").write_text(SPACE)
    read = Space.read(tmp_path / "space.toml")
    lr, preset, lam, epochs, group = read.parameters
    assert lr == Parameter("optimizer.lr", Range(1e-6, 1e-3, True))
    assert preset.domain == Choice(("ppo", "grpo", "rloo"))
    assert lam == Parameter("algorithm.lam", Range(0.8, 1.0), {"algorithm.preset": ("ppo",)})
    assert epochs.domain.whole
    assert not lam.domain.whole
    assert group == Parameter("algorithm.group_size", Choice((2, 4, 8)), {"algorithm.preset": ("grpo", "rloo")})
    assert Space.read(read.to_toml()) == read
    assert Space.read(SPACE) == read
    mapping = {"optimizer": {"lr": {"low": 1e-6, "high": 1e-3, "log": True}}}
    assert Space.read([mapping, SPACE.split("\n", 2)[2]]) == read


def test_a_setting_exists_only_under_its_condition():
    space = Space.read(SPACE)
    drawn = [space.draw(np.random.default_rng(seed)) for seed in range(200)]
    for values in drawn:
        assert ("algorithm.lam" in values) == (values["algorithm.preset"] == "ppo")
        assert ("algorithm.group_size" in values) == (values["algorithm.preset"] != "ppo")
    share = Counter(values["algorithm.preset"] for values in drawn)["ppo"] / 200
    assert abs(share - 1 / 3) < 3 * math.sqrt(2 / 9 / 200)


def test_conditions_may_follow_each_other_and_stand_in_any_order():
    chain = """
[[when]]
if = { optimizer.schedule = "cosine" }
optimizer.final_lr_fraction = { low = 0.0, high = 0.5 }
[[when]]
if = { algorithm.preset = "grpo" }
optimizer.schedule = ["constant", "cosine"]
"""
    space = Space.read([chain, 'preset = ["grpo", "rloo"]'])
    assert [p.name for p in space.parameters] == [
        "algorithm.preset", "optimizer.schedule", "optimizer.final_lr_fraction",
    ]  # fmt: skip
    space.check(Recipe.resolve({"algorithm": {"group_size": 4}}))
    values = [space.draw(np.random.default_rng(seed)) for seed in range(50)]
    assert any("optimizer.final_lr_fraction" in each for each in values)
    assert all(each["algorithm.preset"] == "grpo" for each in values if "optimizer.schedule" in each)


def test_every_whole_number_is_as_likely_and_log_means_log():
    steps = Range(1, 4)
    counted = Counter(steps.at((place + 0.5) / 4000) for place in range(4000))
    assert counted == {1: 1000, 2: 1000, 3: 1000, 4: 1000}
    assert (steps.at(0.0), steps.at(1.0)) == (1, 4)
    rate = Range(1e-6, 1e-2, True)
    assert rate.at(0.5) == pytest.approx(1e-4)
    assert rate.share(1e-3) == pytest.approx(0.75)
    assert {type(rate.at(0.3)), type(steps.at(0.3))} == {float, int}
    assert Range(1, 64, True).at(0.5) == round(math.exp((math.log(0.5) + math.log(64.5)) / 2))


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "the space is empty"),
        ("", "is neither a file (Is a directory) nor a line such as"),
        (
            "lr = {low = 1e-3, high = 1e-4}",
            "optimizer.lr goes from low = 0.001 to high = 0.0001: the bounds are crossed",
        ),
        ("lr = {low = 0, high = 1e-4, log = true}", "on a log scale, so low = 0 must be above 0"),
        ("lr = {low = 1e-5}", "needs low and high, both numbers"),
        ("lr = {low = 1e-5, high = 1e-4, lgo = true}", "must be a list of values or"),
        ('lr = {low = 1e-5, high = 1e-4, log = "yes"}', "log is 'yes', but must be true or false"),
        ("lr = 3", "optimizer.lr is 3, but must be a list of values or"),
        ("lr = [1e-4]", "must have two values at least, each once"),
        ("lr = [1e-4, 1e-4]", "must have two values at least, each once"),
        (["lr = [1e-4, 1e-3]", "optimizer.lr = [1, 2]"], "optimizer.lr is named twice"),
        ("lrr = [1, 2]", "'lrr' is no setting"),
        ("learning_rate = [1, 2]", "did you mean 'optimizer.lr'"),
        ("seed = [1, 2]", "training.seed cannot be tuned"),
        ("task.name = ['a', 'b']", "task.name cannot be tuned"),
        ("lr = [", "is not TOML"),
        ("[when]\nlr = [1, 2]", "in two brackets"),
        ("[[when]]\nlr = [1, 2]", "needs its condition"),
        ('[[when]]\nif = { preset = "ppo" }\nlr = [1, 2]', "hangs on algorithm.preset, which is no list"),
        (
            'preset = ["ppo", "a2c"]\n[[when]]\nif = { preset = "grpo" }\nlr = [1, 2]',
            "algorithm.preset = grpo, which is not in its list",
        ),
        (
            '[[when]]\nif = { preset = "ppo" }\nschedule = ["linear", "cosine"]\n'
            '[[when]]\nif = { schedule = "cosine" }\npreset = ["ppo", "a2c"]',
            "conditions go round in a circle",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(space, says):
    with pytest.raises(RecipeError) as raised:
        Space.read(space)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ("optimizer.lrr = [1, 2]", "'optimizer.lrr' is no setting; did you mean 'optimizer.lr'"),
        ("lr = {low = -1, high = 1e-4}", "optimizer.lr is -1"),
        ('preset = ["grp", "ppo"]', "did you mean 'grpo'"),
        ("epochs = {low = 0, high = 2}", "algorithm.epochs is 0"),
        ('preset = ["grpo", "ppo"]\ngroup_size = [1, 4]', "baseline 'group_mean' needs at least 2"),
    ],
)
def test_what_the_recipe_refuses_is_found_before_anything_runs(space, says):
    with pytest.raises(RecipeError, match="which is refused") as raised:
        Space.read(space).check(Recipe.resolve({}))
    assert says in str(raised.value)


def test_a_choice_may_hold_what_optuna_has_no_type_for():
    space = Space.read("optimizer.betas = [[0.9, 0.95], [0.9, 0.999]]\nvalue_clip = ['none', 0.2]")
    space.check(Recipe.resolve({}))
    assert space.parameters[0].domain.labels == ("[0.9, 0.95]", "[0.9, 0.999]")
    assert written({"optimizer.lr": 1.23456e-5, "x": [1], "y": "a"}) == "optimizer.lr = 1.235e-05, x = [1], y = a"
