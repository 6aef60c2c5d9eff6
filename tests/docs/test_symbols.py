"""Every public symbol is documented, every public module has a page, and both checks can fail."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def symbols(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    return importlib.import_module("symbols")


def pages():
    return [page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")]


def test_every_public_symbol_has_a_docstring(symbols):
    assert not symbols.undocumented(symbols.load("upslope", ROOT / "src"))


def test_every_public_module_stands_on_a_page_of_the_reference(symbols):
    """Where this fails, add `::: upslope.x.y` to a page of docs/api, the last of which is internals.md."""
    assert not symbols.absent(symbols.load("upslope", ROOT / "src"), pages())


PACKAGE = '''
    """A module."""

    def told():
        """Documented."""

    def untold(): ...

    def _private(): ...

    class Told:
        """Documented."""

        field: int = 0

        def method(self): ...

        def _private(self): ...

        @property
        def property(self): ...

    class Untold: ...
'''


@pytest.fixture
def package(tmp_path, symbols):
    """A package with documented and undocumented symbols of every kind."""
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A package."""\n\nfrom house.rooms import untold\n')
    (folder / "rooms.py").write_text(textwrap.dedent(PACKAGE))
    (folder / "cellar.py").write_text("")
    return symbols.load("house", tmp_path)


def test_what_has_no_docstring_is_named(symbols, package):
    rooms = ("house.rooms.untold", "house.rooms.Told.method", "house.rooms.Told.property", "house.rooms.Untold")
    assert set(symbols.undocumented(package)) == {"house.cellar", *rooms}


def test_a_module_on_no_page_is_named(symbols, package):
    assert symbols.absent(package, ["::: house.rooms.Told"]) == ["house.cellar"]
    assert symbols.absent(package, ["::: house.rooms", "# Below\n\n::: house.cellar\n    options: {}\n"]) == []
    others = ["::: house.roomsandmore", "see ::: house.cellar"]
    assert symbols.absent(package, others) == ["house.cellar", "house.rooms"]


def test_the_build_fails_and_says_why(symbols, package, tmp_path, monkeypatch):
    (tmp_path / "docs" / "api").mkdir(parents=True)
    monkeypatch.setattr(symbols, "load", lambda name, folder: package)
    message = r"house\.rooms\.untold has no docstring(.|\n)*house\.cellar stands on no page"
    with pytest.raises(symbols.PluginError, match=message):
        symbols.on_pre_build({"config_file_path": str(tmp_path / "mkdocs.yml")})
