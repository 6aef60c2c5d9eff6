"""Formulas become MathML at build time."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from xml.etree import ElementTree

import markdown
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "$" in page.read_text()]


@pytest.fixture
def formulas(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    return importlib.import_module("formulas")


def rendered(formulas, text):
    generic = {"pymdownx.arithmatex": {"generic": True}}
    html = markdown.markdown(text, extensions=[*generic, "pymdownx.superfences", "tables"], extension_configs=generic)
    return formulas.on_page_content(html)


def test_a_formula_in_a_line_and_one_of_its_own(formulas):
    html = rendered(formulas, "where $a < b$ and\n\n$$\n\\frac{1}{2}\n$$\n")
    inline, block = (ElementTree.fromstring(found) for found in re.findall(r"<math.*?</math>", html, re.DOTALL))
    name = "{http://www.w3.org/1998/Math/MathML}"
    assert inline.get("display") == "inline"
    assert "".join(inline.itertext()) == "a<b"
    assert block.get("display") == "block"
    assert [node.text for node in block.iter(f"{name}mn")] == ["1", "2"]
    assert block.find(f".//{name}mfrac") is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_formula_of_the_documentation_is_understood(formulas, page):
    """No command is left over as text, which is how an unknown one would show."""
    html = rendered(formulas, page.read_text())
    assert "arithmatex" not in html
    for found in re.findall(r"<math.*?</math>", html, re.DOTALL):
        text = "".join(ElementTree.fromstring(found).itertext())
        assert "\\" not in text
        assert "$" not in text
