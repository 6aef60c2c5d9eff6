"""examples/compare_models.py on a tiny model: what rounding does to the weights, and a row for each."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("compare_models")


def test_rounding_leaves_so_many_values_a_row(example, tmp_path, make_policy):
    make_policy("tiny-llama").save(tmp_path / "whole")
    weights = []
    for folder in (tmp_path / "whole", example.rounded(str(tmp_path / "whole"), 4, tmp_path)):
        model = make_policy(folder).model
        weights.append(model.model.layers[0].mlp.up_proj.weight.detach())
    whole, four = weights
    assert max(len(row.unique()) for row in four) <= 15
    step = whole.abs().amax(1, keepdim=True) / 7
    assert ((whole - four).abs() <= 0.5001 * step).all()
    assert not torch.equal(whole, four)


def test_the_table_has_a_row_for_each_rounding(example, capsys):
    eight, four = example.main("tiny-llama", num_prompts=30, look_every=None, max_new_tokens=4)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["b", "---", "8 bits", "4 bits"]
    assert eight.common_numbers
    assert four.common_numbers
