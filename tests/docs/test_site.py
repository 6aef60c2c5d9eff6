"""The built site: strict, and complete in itself. A browser that is cut off from every network shows all of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from pages import ROOT

LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
NOT_LOADED = {"canonical", "prev", "next", "edit", "license"}  # links that a browser does not follow by itself


class Resources(HTMLParser):
    """What a browser loads for a page: the addresses in `found`."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in LOADED and not (tag == "link" and set(attributes.get("rel", "").split()) & NOT_LOADED):
            self.found.append(attributes.get(LOADED[tag]) or "")


def elsewhere(address):
    """Whether an address leads to another host."""
    return bool(re.match(r"(?:\w+:)?//", address))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """`make docs`, into a folder of its own. Not --quiet, which would keep warnings from counting as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert not [(str(page), address) for page in pages for address in resources(page) if elsewhere(address)]
    assert any(resources(page) for page in pages)


def resources(page):
    return Resources(page.read_text(encoding="utf-8")).found


def test_what_pages_load_is_there(site):
    for page in site.rglob("*.html"):
        for address in resources(page):
            path = address.split("#")[0].split("?")[0]
            if page.name != "404.html" and path and not path.startswith("data:"):
                assert (page.parent / path).exists(), f"{page}: {path}"


def test_no_style_loads_a_font_or_another_style_from_elsewhere(site):
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.findall(r"url\(\s*[\"']?(?:\w+:)?//", text), sheet
        assert "@import" not in text, sheet


def test_nothing_wakes_the_parts_of_the_theme_that_ask_a_server(site):
    """The theme's script would load mermaid for a diagram, and a repository's stars where one is named."""
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert 'class="mermaid"' not in html
        assert 'data-md-component="source"' not in html


def test_formulas_are_mathml(site):
    html = (site / "presets" / "ppo" / "index.html").read_text(encoding="utf-8")
    assert html.count('display="block"') == 2
    assert "<math" in html
    assert "arithmatex" not in html
    assert "\\frac" not in html


def test_resources_are_found_where_they_are():
    links = '<link rel="canonical" href="//x/a"><link rel="stylesheet" href="https://x/b.css">'
    html = links + '<script src="//x/c.js"></script>'
    assert Resources(html).found == ["https://x/b.css", "//x/c.js"]
    assert [elsewhere(address) for address in ("https://x/b", "//x/c", "../assets/d.js", "#e", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
