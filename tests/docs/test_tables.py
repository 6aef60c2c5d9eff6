"""The documentation's tables of settings and presets are those of the code, and every setting is explained."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from upslope.presets import PRESETS
from upslope.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("tables")


def test_tables_are_up_to_date(tables):
    """Where this fails, run `python docs/tables.py` and write what new settings mean."""
    stale = [page.name for page in tables.pages() if tables.rewritten(page.read_text()) != page.read_text()]
    assert not stale


def test_every_setting_has_a_meaning(tables):
    assert not [name for page in tables.pages() for name in tables.missing(page.read_text())]


def test_every_section_and_preset_has_a_table():
    text = (DOCS / "recipes.md").read_text()
    sections = [name for name, value in Recipe() if name != "method"]
    assert not [name for name in ("top", "lora", *sections) if f"<!-- settings: {name} -->" not in text]
    for preset in PRESETS:
        assert f"<!-- preset: {preset} -->" in (DOCS / "presets" / f"{preset}.md").read_text()


def test_a_changed_default_is_noticed(tables):
    text = "<!-- settings: engine -->\n| `max_rows` | integer > 0 | `7` | Rows at a time. |\n<!-- end -->"
    assert "| `max_rows` | integer > 0 | `128` | Rows at a time. |" in tables.rewritten(text)
    others = ["engine.cache_gib", "engine.kernels"]
    assert tables.missing(text.replace("Rows at a time.", "")) == ["engine.max_rows", *others]
