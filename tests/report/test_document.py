"""A result's document: the same cells in Markdown and in HTML, and nothing in a name gets out of its place."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import pytest
from run_pages import HOSTILE

from upslope.errors import CheckpointError
from upslope.report.document import Bars, Document, Table, save

BARS = Bars("Difference", [("t", 0.1, -0.1, 0.3), ("none", 0.0, -math.inf, math.inf)])
TABLE = Table("Models", [("model", "f1|macro"), (HOSTILE, "0.5")])
DOCUMENT = Document(f"a beside {HOSTILE}", "a | b is better", [TABLE, BARS], ["one note"])


class Cells(HTMLParser):
    """Cells and styles by place, and all tags."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.styles, self.tags = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        if tag in ("td", "th"):
            self.cells.append("")
        if "style" in attributes:
            self.styles.setdefault(attributes["class"], []).append(attributes["style"])

    def handle_data(self, data):
        if self.cells and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data


def test_the_page_holds_every_cell_and_runs_nothing():
    page = Cells(DOCUMENT.html())
    assert page.cells[:4] == ["model", "f1|macro", HOSTILE, "0.5"]
    assert {"0.100", "[-0.100, 0.300]", "[-inf, inf]"} <= set(page.cells)
    assert not {"script", "img"} & set(page.tags)


def test_bars_stand_to_scale():
    """From -.1 to .3 over 98%: 0 stands at a quarter, the estimate at a half; a bar without bounds is not drawn."""
    page = Cells(DOCUMENT.html())
    assert page.styles["zero"][0] == "left: 25.50%"
    assert page.styles["dot"][0].startswith("left: 50.00%")
    assert [style.split("; b")[0] for style in page.styles["bar"]] == ["left: 1.00%; width: 98.00%"]


def test_markdown_keeps_pipes_within_their_cells():
    text = DOCUMENT.markdown()
    assert "| model | f1\\|macro |\n| --- | --- |" in text
    assert "| t | 0.100 | [-0.100, 0.300] |" in text
    assert text.endswith("## Notes\n\n- one note\n")


def test_the_ending_says_in_which_form(tmp_path):
    for name in ("found.html", "found.md", "found.json", "found"):
        save(tmp_path / name, DOCUMENT, {"verdict": "better"})
    assert (tmp_path / "found.html").read_text() == DOCUMENT.html()
    assert (tmp_path / "found.md").read_text() == DOCUMENT.markdown()
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads((tmp_path / "found").read_text())
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "nowhere" / "found.md", DOCUMENT, {})
