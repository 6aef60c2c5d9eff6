"""Keeps the tables of settings in these pages true: types and defaults come from the code, meanings from the page.

    python docs/tables.py          # rewrites the tables in docs/recipes.md and docs/presets/*.md

A table stands between `<!-- settings: SECTION -->` or `<!-- preset: NAME -->` and `<!-- end -->`. The last column is
written by hand and kept; a setting without a meaning is an error, which a test finds.
"""

from __future__ import annotations

import re
import types
import typing
from dataclasses import astuple
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from upslope.algorithm import AlgorithmSettings
from upslope.presets import PRESETS
from upslope.recipe import Recipe
from upslope.settings import LoraSettings

FOLDER = Path(__file__).parent
_SECTIONS: dict[str, type[BaseModel]] = {
    "top": Recipe,
    "lora": LoraSettings,
    **{name: type(value) for name, value in Recipe() if isinstance(value, BaseModel)},
}
_BLOCK = re.compile(r"<!-- (settings|preset): (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
_ROW = re.compile(r"^\| `(\w+)` \|(?:.*\|)? (.*?) \|$", re.MULTILINE)


def rewritten(text: str) -> str:
    """The page with its tables brought up to date."""
    return _BLOCK.sub(lambda match: _block(*match.groups()), text)


def missing(text: str) -> list[str]:
    """Settings of the page's tables that have no meaning."""
    found = [(match[2], _meanings(match[3])) for match in _BLOCK.finditer(rewritten(text))]
    return [f"{owner}.{name}" for owner, meanings in found for name, meaning in meanings.items() if not meaning]


def pages() -> list[Path]:
    """Every page that holds such a table."""
    return [page for page in sorted(FOLDER.rglob("*.md")) if _BLOCK.search(page.read_text(encoding="utf-8"))]


def _block(kind: str, owner: str, table: str) -> str:
    rows = _settings_rows(owner) if kind == "settings" else _preset_rows(owner)
    header = ("setting", "type", "default", "meaning") if kind == "settings" else ("setting", "value", "meaning")
    meanings = _meanings(table)
    lines = [_line(header), _line(["---"] * len(header))]
    lines += [_line([f"`{name}`", *cells, meanings.get(name, "")]) for name, *cells in rows]
    return f"<!-- {kind}: {owner} -->\n" + "\n".join(lines) + "\n<!-- end -->"


def _meanings(table: str) -> dict[str, str]:
    return {name: meaning.strip() for name, meaning in _ROW.findall(table)}


def _line(cells: typing.Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _settings_rows(section: str) -> list[tuple[str, str, str]]:
    model = _SECTIONS[section]
    fields = {name: field for name, field in model.model_fields.items() if not _section(field.annotation)}
    return [(name, _type(field), _default(field)) for name, field in fields.items()]


def _preset_rows(preset: str) -> list[tuple[str, str]]:
    settings = AlgorithmSettings.model_validate({"preset": preset})
    return [(name, _code(getattr(settings, name))) for name in PRESETS[preset]]


def _section(annotation: typing.Any) -> type[BaseModel] | None:
    choices = [annotation, *typing.get_args(annotation)]
    return next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _type(field: FieldInfo) -> str:
    return _bounded(_type_name(field.annotation), field.metadata)


def _bounded(name: str, metadata: typing.Sequence[typing.Any]) -> str:
    """`number > 0`: a type's name with the bounds that pydantic holds beside it, or in a Field of an annotation."""
    signs = {Gt: ">", Ge: ">=", Lt: "<", Le: "<="}
    flat = [part for m in metadata for part in (m.metadata if isinstance(m, FieldInfo) else [m])]
    bounds = [f"{signs[type(c)]} {astuple(c)[0]:g}" for c in flat if type(c) in signs]
    return " ".join([name, " and ".join(bounds)]).strip()


def _type_name(annotation: typing.Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _bounded(_type_name(arguments[0]), annotation.__metadata__)
    if origin is typing.Literal:
        return " or ".join(f'`"{choice}"`' for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join('`"none"`' if a is types.NoneType else _type_name(a) for a in arguments)
    if origin is tuple:
        inner = _type_name(arguments[0])
        return f"list of {inner}" if arguments[-1] is ... else f"list of {len(arguments)}: each {inner}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "boolean", "dict": "table"}.get(
        getattr(origin or annotation, "__name__", ""), str(annotation)
    )


def _default(field: FieldInfo) -> str:
    return "from the preset" if field.is_required() else _code(field.default)


def _code(value: typing.Any) -> str:
    """A value as it is written in TOML."""
    if value is None:
        return '`"none"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    for page in pages():
        page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
