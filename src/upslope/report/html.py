"""Runs as one HTML page that needs nothing beside itself: styles, scripts and data are in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from upslope import __version__
from upslope.report.curves import CHARTS, NO_CHART

_FOLDER = files("upslope.report") / "page"
_STYLES = ("vendor/uPlot.min.css", "page.css")
_SCRIPTS = (
    "elements.js",
    "charts.js",
    "tokens.js",
    "inspector.js",
    "changes.js",
    "overview.js",
    "reliability.js",
    "live.js",
)
_SECTIONS = ("summary", "alarms", "curves", "reliability", "time", "rollouts", "changes", "recipe", "notes")
_RATING_SCRIPTS = ("elements.js", "rating.js")


def page(data: Mapping[str, Any], *, title: str) -> str:
    """The page of `{"runs": [summarise(...), ...], "live": bool}`.

    Runs may hold any text: the data is inert JSON that no tag can end, scripts write it as text only, and the page's
    policy lets the browser run these very scripts (by hash) and fetch nothing from elsewhere.
    """
    shown = {**data, "charts": [asdict(c) for c in CHARTS], "no_chart": NO_CHART, "version": __version__}
    scripts = (_asset("vendor/uPlot.iife.min.js"), _program(_SCRIPTS))
    return _filled(shown, title=title, sections=_SECTIONS, styles=_STYLES, scripts=scripts, live=bool(data.get("live")))


def rating_page(data: Mapping[str, Any], *, title: str) -> str:
    """The page of `{"stars": bool, "rater": str, "path": str}`, which asks its server for questions."""
    scripts = (_program(_RATING_SCRIPTS),)
    return _filled(data, title=title, sections=("asked",), styles=("page.css",), scripts=scripts, live=True)


def _filled(
    data: Mapping[str, Any],
    *,
    title: str,
    sections: Sequence[str],
    styles: Sequence[str],
    scripts: Sequence[str],
    live: bool,
) -> str:
    parts = {
        "policy": _policy(*scripts, live=live),
        "title": escaped(title),
        "style": "\n".join(map(_asset, styles)),
        "sections": "\n".join(f'<section id="{section}"></section>' for section in sections),
        "data": inert_json(data),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    head, *rest = _asset("page.html").split("{{")
    filled = [head]
    for part in rest:
        name, _, plain = part.partition("}}")
        filled += [parts[name], plain]
    return "".join(filled)


def document(body: str, *, title: str, about: str = __version__) -> str:
    """A page in the same style that runs no script; body is its HTML, with all text in it escaped."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escaped(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{_asset("page.css")}</style>\n</head>\n'
        f'<body>\n<header><div class="names"><span class="mark">upslope</span><h1>{escaped(title)}</h1>'
        f'<span class="quiet">{escaped(about)}</span></div></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _program(names: Sequence[str]) -> str:
    """One program of several files, whose names no other script sees."""
    return '"use strict";\n{\n' + "\n".join(map(_asset, names)) + "\n}"


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


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def escaped(text: str) -> str:
    """The text with what HTML reads spelt out."""
    text = text.encode("utf-8", "replace").decode()  # a folder's name may hold what is no text
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
