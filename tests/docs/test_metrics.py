"""The page of metrics names what runs log: nothing less, and for each method nothing else."""

from __future__ import annotations

import re

import pytest
from pages import ROOT

import upslope
from upslope.presets import PRESETS

PAGE = (ROOT / "docs" / "metrics.md").read_text()
NAMES = set(re.findall(r"`([\w/ ]+)`", PAGE))
ANY = {"reward": "NAME", "time": "PART", "tokens_per_s": "PHASE", "dropped": "REASON"}
SIZES = {"steps": 1, "prompts_per_step": 2, "max_new_tokens": 6, "every_steps": 1}
QUICK = {"trackers": [], "isolation": "none", "checkpoint_every_steps": "none", "samples_per_step": 0}


def vowels(completion, num_tokens):
    return sum(letter in "aeiou" for letter in completion) / (1 + num_tokens)


@pytest.fixture(scope="module")
def task():
    prompts = [{"prompt": f"say {word}", "completion": word} for word in ("sea", "sky", "fog", "oak")]
    return upslope.Task(prompts=prompts, reward=vowels, eval_prompts=["say ice"])


@pytest.fixture(scope="module")
def logged(task, tmp_path_factory):
    """The names that one step of each preset logs."""
    folder = tmp_path_factory.mktemp("metrics")

    def names(preset):
        group_size = PRESETS[preset].get("group_size", 2)
        settings = {"model": "tiny-llama", "algorithm": preset, "group_size": group_size, **SIZES, **QUICK}
        return set(upslope.train(task=task, run=folder / preset, **settings).metrics)

    return {preset: names(preset) for preset in PRESETS}


def known(name):
    head, _, tail = name.partition("/")
    return name in NAMES or (bool(tail) and head in ANY and f"{head}/{ANY[head]}" in NAMES)


def test_every_logged_name_is_on_the_page(logged):
    assert not {name for names in logged.values() for name in names if not known(name)}
    assert not known("no_such_metric")


def test_every_part_of_the_time_is_on_the_page(logged):
    timed = {name for names in logged.values() for name in names if name.startswith(("time/", "tokens_per_s/"))}
    assert {name.partition("/")[2] for name in timed} <= NAMES


def test_each_method_logs_what_its_row_says(logged):
    common = set.intersection(*logged.values())
    rows = re.findall(r"^\| `(\w+)` \| (.*?)\|$", PAGE.split("## Which method logs which")[1], re.MULTILINE)
    assert [preset for preset, _ in rows] == list(PRESETS)
    for preset, cell in rows:
        own = {name for name in logged[preset] - common if not name.startswith(("time/", "dropped/"))}
        assert set(re.findall(r"`([\w/]+)`", cell)) == own, preset


def test_a_supervised_run_logs_names_of_the_page(task, tmp_path):
    settings = {"model": "tiny-llama", "method": "supervised", **SIZES, **QUICK}
    run = upslope.train(task=task, run=tmp_path / "run", **settings)
    assert "loss" in run.metrics
    assert not {name for name in run.metrics if not known(name)}
