"""Runs as one HTML page that needs nothing beside itself: styles, scripts and data are in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from upslope import __version__
from upslope.report.curves import CHARTS, NO_CHART

_FOLDER = files("upslope.report") / "page"
_STYLES = ("vendor/uPlot.min.css", "page.css")
_SCRIPTS = ("elements.js", "charts.js", "tokens.js", "inspector.js", "changes.js", "overview.js", "live.js")


def page(data: Mapping[str, Any], *, title: str) -> str:
    """The page of `{"runs": [summarise(...), ...], "live": bool}`.

    Runs may hold any text: the data is inert JSON that no tag can end, scripts write it as text only, and the page's
    policy lets the browser run these very scripts (by hash) and fetch nothing from elsewhere.
    """
    library = asset("vendor/uPlot.iife.min.js")
    program = '"use strict";\n{\n' + "\n".join(asset(name) for name in _SCRIPTS) + "\n}"
    parts = {
        "policy": _policy(library, program, live=bool(data.get("live"))),
        "title": escaped(title),
        "style": "\n".join(asset(name) for name in _STYLES),
        "data": inert_json(
            {**data, "charts": [asdict(c) for c in CHARTS], "no_chart": NO_CHART, "version": __version__}
        ),
        "library": library,
        "program": program,
    }
    return filled("page.html", parts)


def filled(template: str, parts: Mapping[str, str]) -> str:
    """An asset with each {{name}} replaced by that part."""
    head, *sections = asset(template).split("{{")
    pieces = [head]
    for section in sections:
        name, _, rest = section.partition("}}")
        pieces += [parts[name], rest]
    return "".join(pieces)


def inert_json(value: Any) -> str:
    """Strict JSON without a character that HTML reads: it can end no tag and no script."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(*scripts: str, live: bool) -> str:
    """The content security policy under which only these scripts run."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )


def asset(name: str) -> str:
    """The text of a file of the page's folder."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def escaped(text: str) -> str:
    """Any text as HTML shows it."""
    text = text.encode("utf-8", "replace").decode()  # a folder's name may hold what is no text
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
