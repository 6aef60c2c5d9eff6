"""The build fails where a public symbol of upslope has no docstring, or a public module stands on no reference page.

Public is what no part of whose name begins with an underscore: modules, classes, functions, methods and properties.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError

_DIRECTIVE = re.compile(r"^::: ([\w.]+)", re.MULTILINE)


def on_pre_build(config: Any) -> None:
    """Called by mkdocs before it reads a page."""
    root = Path(config["config_file_path"]).parent
    package = load("upslope", root / "src")
    pages = [page.read_text(encoding="utf-8") for page in (root / "docs" / "api").glob("*.md")]
    found = [f"{name} has no docstring" for name in undocumented(package)]
    found += [f"{name} stands on no page of docs/api" for name in absent(package, pages)]
    if found:
        raise PluginError("\n".join(found))


def load(name: str, folder: Path) -> griffe.Object:
    """The package as its source says, without importing it."""
    package = griffe.load(name, search_paths=[folder], allow_inspection=False)
    assert isinstance(package, griffe.Object)
    return package


def undocumented(package: griffe.Object) -> list[str]:
    """Full names of the package's public symbols without a docstring."""
    return sorted(symbol.path for symbol in (package, *_public(package)) if not symbol.has_docstring)


def absent(package: griffe.Object, pages: Iterable[str]) -> list[str]:
    """Full names of the public modules of which no page has the module itself or one of its members."""
    shown = {f"{name}." for page in pages for name in _DIRECTIVE.findall(page)}
    modules = sorted(symbol.path for symbol in _public(package) if symbol.is_module)
    return [name for name in modules if not any(other.startswith(f"{name}.") for other in shown)]


def _public(owner: griffe.Object) -> Iterator[griffe.Object]:
    for name, member in owner.members.items():
        if name.startswith("_") or not isinstance(member, griffe.Object):  # an Alias is another module's symbol
            continue
        if member.is_attribute and "property" not in member.labels:
            continue
        yield member
        yield from _public(member)
