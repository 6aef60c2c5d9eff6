"""examples/compare_models.py on a tiny model: two rows, and fewer bits move the model further."""

from __future__ import annotations

import importlib
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_table_has_a_row_for_each_rounding(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("compare_models")
    eight, four = example.main("tiny-llama", num_prompts=30, look_every=None, max_new_tokens=4)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert table[2].split("|")[1].strip() == "8 bits"
    assert eight.common_numbers
    assert eight.difference.se < four.difference.se, "common numbers: the closer the models, the closer the answers"
