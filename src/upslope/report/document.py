"""A result as a document: one list of blocks, read as Markdown or as an HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from upslope.errors import CheckpointError
from upslope.report.html import document as page
from upslope.report.html import escaped
from upslope.report.run import write_text


class Block(Protocol):
    """A part of a document."""

    def markdown(self) -> str:
        """As Markdown; nothing where another block says the same."""
        ...

    def html(self) -> str:
        """As HTML, with all text in it escaped."""
        ...


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a title; the first row is the head."""

    title: str
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A heading and a table in pipes."""
        head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in self.rows)
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join([f"## {self.title}", "", *("| " + " | ".join(cells) + " |" for cells in lines)])

    def html(self) -> str:
        """A heading and a table in a card."""
        head, *rows = self.rows
        cells = "".join(f"<th>{escaped(cell)}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        table = f'<table class="wide"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
        return f'<h2>{escaped(self.title)}</h2><div class="card scroll">{table}</div>'


@dataclass(frozen=True, slots=True)
class Bars:
    """Estimates with their intervals, (name, estimate, low, high), on one scale that holds 0."""

    title: str
    rows: Sequence[tuple[str, float, float, float]]
    digits: int = 3

    def markdown(self) -> str:
        """As a table."""
        rows = [(name, self._number(value), self._interval(low, high)) for name, value, low, high in self.rows]
        return Table(self.title, [("", "estimate", "interval"), *rows]).markdown()

    def html(self) -> str:
        """Each as a dot on a bar; a bar without bounds is left out."""
        ends = [end for _, *numbers in self.rows for end in numbers if math.isfinite(end)]
        low, high = min(0.0, *ends), max(0.0, *ends)
        scale = 98.0 / (high - low or 1.0)

        def place(value: float) -> float:
            return 1.0 + scale * (value - low)

        drawn = [f'<h2>{escaped(self.title)}</h2><div class="card heldout"><table>']
        for name, value, first, last in self.rows:
            bar = ""
            if math.isfinite(first) and math.isfinite(last):
                ends_at = f"left: {place(first):.2f}%; width: {place(last) - place(first):.2f}%"
                bar = f'<i class="bar" style="{ends_at}; background: var(--line-0)"></i>'
            drawn.append(
                f'<tr><th>{escaped(name)}</th><td class="number">{self._number(value)}</td>'
                f'<td class="quiet">{self._interval(first, last)}</td><td class="whisker">'
                f'<i class="zero" style="left: {place(0.0):.2f}%"></i>{bar}'
                f'<i class="dot" style="left: {place(value):.2f}%; background: var(--line-0)"></i></td></tr>'
            )
        return "".join([*drawn, "</table></div>"])

    def _number(self, value: float) -> str:
        return f"{value:.{self.digits}f}"

    def _interval(self, low: float, high: float) -> str:
        return f"[{self._number(low)}, {self._number(high)}]"


@dataclass(frozen=True, slots=True)
class Document:
    """A title, the sentence that says what was found, tables and drawings, and notes."""

    title: str
    lead: str
    blocks: Sequence[Block]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """All of it as Markdown."""
        blocks = filter(None, (block.markdown() for block in self.blocks))
        parts = [f"# {self.title}", f"**{self.lead}**", *blocks]
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join([*parts, *([f"## Notes\n\n{notes}"] if notes else [])]) + "\n"

    def html(self) -> str:
        """All of it as a page without a script, in the style of a run's report."""
        notes = "".join(f"<p>{escaped(note)}</p>" for note in self.notes)
        body = [
            f"<p><b>{escaped(self.lead)}</b></p>",
            *(block.html() for block in self.blocks),
            f'<h2>Notes</h2><div class="card">{notes}</div>' if notes else "",
        ]
        return page("".join(body), title=self.title)


def check_place(path: Path | None) -> None:
    """See before the work that a result could be written there. Raises: CheckpointError where it could not."""
    if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent} that can be written to")


def save(path: Path, document: Document, numbers: Mapping[str, Any]) -> None:
    """Write a result: .html as a page, .md as Markdown, all else as the numbers in JSON.

    Raises: CheckpointError when the file cannot be written.
    """
    kinds = {".html": document.html, ".md": document.markdown}
    text = kinds[path.suffix]() if path.suffix in kinds else json.dumps(numbers, indent=1) + "\n"
    write_text(path, text)
