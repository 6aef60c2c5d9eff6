"""The tutorial, typed as it stands on a model of 260 thousand weights: a stranger's first ten minutes."""

from __future__ import annotations

import runpy

import pytest
from pages import ROOT, blocks, run_page

import upslope

PAGE = ROOT / "docs" / "tutorial.md"
CHOICE = "export MODEL=smollm2-135m-instruct LR=1e-4"


@pytest.mark.timeout(600)  # twenty seconds on a machine of its own; others may share it
def test_the_tutorial(reader, data_folder, capsys, monkeypatch):
    """Every block in order; then what the page promises of the run: it learnt, it was resumed, its model loads."""
    small = reader / "tutorial.md"
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(CHOICE) == 1
    small.write_text(text.replace(CHOICE, f"export MODEL={data_folder / 'models' / 'stories260k'} LR=2e-3"))
    ran = run_page(small, capsys, monkeypatch)
    assert [command.split()[:2] for command in ran if command.startswith("upslope")] == [
        ["upslope", command] for command in ("train", "train", "report", "resume", "evaluate", "generate")
    ]
    run = upslope.Run.open("runs/stories")
    assert set(run.metrics["reward"]) == set(range(1, 17))
    held_out = run.metrics["evaluate/metric"]
    assert set(held_out) == {0, 8, 16}
    assert held_out[16] > 0.4 > 0.3 > held_out[0]
    assert (run.folder / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    runpy.run_path("use.py")
    assert "Lily had a little frog." in capsys.readouterr().out


def test_its_mistake_is_a_mistake_still():
    """The one block whose command must fail; run_page holds it to its message."""
    refused = [block.text for block in blocks(PAGE) if "\nerror: " in block.text]
    assert len(refused) == 1
