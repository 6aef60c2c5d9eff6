"""Formulas become MathML while the site is built, so that no page loads a script or a font for them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# what pymdownx.arithmatex leaves in its generic mode: \(...\) in a span, \[...\] in a div
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """The page with every formula as MathML; called by mkdocs."""
    return _FORMULA.sub(lambda match: _mathml(match[2], block=match[1] == "div"), content)


def _mathml(formula: str, *, block: bool) -> str:
    mathml = convert(html.unescape(formula).strip(), display="block" if block else "inline")
    if not block:
        return mathml
    return f'<div style="overflow-x: auto; padding: 0.5em 0">{mathml}</div>'  # a narrow window scrolls it
