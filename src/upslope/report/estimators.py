"""How near advantage estimators are to the truth, as a document: curves, intervals, costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.report.document import Block, Document, Table
from upslope.report.html import escaped

_COLOURS = (0, 1, 5, 9, 2, 6, 3)
"""Of the page's ten line colours, one for each family in their order."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT, _TOP = 460, 240, 44, 30, 12, 12
_APART = 14  # between the ends of lines that go across
_LEAST, _MOST = 0.1, 50.0  # what an axis of errors shows at most; whatever lies beyond is drawn at its edge


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where a number lies between 0 and 1, the ticks, and the number that means nothing was learned."""

    place: Callable[[float], float]
    ticks: tuple[float, ...]
    nothing: float


_CORRELATION = _Axis(lambda x: (x + 0.5) / 1.5, (-0.5, 0.0, 0.5, 1.0), 0.0)


def estimator_document(found: Mapping[str, Any]) -> Document:
    """What is read of an evaluation.estimator_report.EstimatorReport.as_dict()."""
    figures = found["figures"].values()
    blocks: list[Block] = [
        *(_Curves(found, figure) for figure in ("error", "alignment")),
        Table("Figures", [("figure", "what it is"), *figures]),
        *(_Place(found, place) for place in _judged(found)),
        Table("What it costs", found["costs"]),
        Table("Where", found["where"]),
    ]
    title = f"Advantage estimators: {found['model']} on {found['task']}"
    return Document(title, found["sentence"], blocks, _notes(found))


@dataclass(frozen=True, slots=True)
class _Curves:
    """A figure by lambda, a chart for each place; in Markdown nothing, as the places' tables hold the numbers."""

    found: Mapping[str, Any]
    figure: str

    def markdown(self) -> str:
        return ""

    def html(self) -> str:
        places, colours = _judged(self.found), _colours(self.found)
        name, about = self.found["figures"][self.figure]
        charts = (_lam_chart(place, self.figure, colours, _axes(places)[self.figure]) for place in places)
        return (
            f"<h2>{escaped(name.capitalize())} by lambda <small>{escaped(about)}; bands are 95% intervals over prompts"
            f'</small></h2>{_legend(colours)}<div class="charts">{"".join(charts)}</div>'
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Every figure (a column) of every estimator (a row) at a place; in HTML each as a number and a whisker."""

    found: Mapping[str, Any]
    place: Mapping[str, Any]

    def markdown(self) -> str:
        figures = self.found["figures"]
        head = ("estimator", *(name for name, _ in figures.values()))
        rows = [(one["name"], *(_shown(one["agreement"][f]) for f in figures)) for one in self.place["estimators"]]
        return Table(f"On {self.place['name']}", [head, *rows]).markdown()

    def html(self) -> str:
        found, place = self.found, self.place
        figures, axes, colours = found["figures"], _axes(_judged(found)), _colours(found)
        head = "".join(f'<th title="{escaped(about)}">{escaped(name)}</th>' for name, about in figures.values())
        rows = []
        for one in place["estimators"]:
            colour = colours[one["family"]]
            cells = "".join(f"<td>{_whisker(one['agreement'][f], axes[f], colour)}</td>" for f in figures)
            own = ' class="own"' if one["name"] == found["reference"] else ""
            key = f'<i class="swatch" style="background: {colour}"></i>'
            rows.append(f"<tr{own}><th>{key}{escaped(one['name'])}</th>{cells}</tr>")
        table = f'<table class="judged"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        opened = " open" if place["name"] == found["shown"] else ""
        return f'<details class="card scroll"{opened}><summary>on {escaped(place["name"])}</summary>{table}</details>'


def _judged(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [place for place in found["places"] if place["problem"] is None]


def _colours(found: Mapping[str, Any]) -> dict[str, str]:
    """Family -> its colour, in all charts and tables."""
    families = dict.fromkeys(one["family"] for place in _judged(found) for one in place["estimators"])
    return {family: f"var(--line-{_COLOURS[i % len(_COLOURS)]})" for i, family in enumerate(families)}


def _axes(places: Sequence[Mapping[str, Any]]) -> dict[str, _Axis]:
    return {
        "error": _error_axis(places),
        "more_error": _difference_axis(places),
        "alignment": _CORRELATION,
        "slope": _Axis(lambda x: (x + 0.5) / 2, (-0.5, 0.0, 0.5, 1.0, 1.5), 1.0),
        "rank_corrected": _CORRELATION,
        "sign": _Axis(lambda x: x, (0.0, 0.5, 1.0), 0.5),
    }


def _how(found: Mapping[str, Any]) -> str:
    fit = found["fit"]
    return (
        f"Sampled at temperature {found['temperature']:g}, gamma {found['gamma']:g}; {found['rows']} rows a prompt, "
        f"as many decisions, {found['branches']} branches after each and as many before it. Heads fitted "
        f"on {fit['num_actions']} actions of {fit['num_prompts']} prompts. Compared with: {found['reference']}."
    )


def _error_axis(places: Sequence[Mapping[str, Any]]) -> _Axis:
    """Logarithmic, from the least to the largest error there is, whole decades."""
    values = [bound for bound in _bounds(places, "error") if bound > 0] or [1.0]
    low = math.floor(math.log10(max(_LEAST, min(0.5, *values))))
    high = math.ceil(math.log10(min(_MOST, max(2.0, *values))))

    def place(error: float) -> float:
        return (math.log10(max(error, 10.0**low)) - low) / (high - low)

    return _Axis(place, tuple(10.0**power for power in range(low, high + 1)), 1.0)


def _difference_axis(places: Sequence[Mapping[str, Any]]) -> _Axis:
    """Linear and symmetric; wide enough for the middle nine tenths of the bounds."""
    sizes = sorted(abs(bound) for bound in _bounds(places, "more_error")) or [1.0]
    size = max(0.1, sizes[int(0.9 * (len(sizes) - 1))])
    return _Axis(lambda x: (x / size + 1) / 2, (-size, 0.0, size), 0.0)


def _bounds(places: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    intervals = [one["agreement"][figure] for place in places for one in place["estimators"]]
    return [bound for interval in intervals if interval for bound in interval if bound is not None]


def _lam_chart(place: Mapping[str, Any], figure: str, colours: Mapping[str, str], axis: _Axis) -> str:
    """A figure of GAE by lam, a line a family with its band; of what has no lam, a level across."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(lam: float) -> float:
        return _LEFT + lam * (right - _LEFT)

    def y(error: float | None) -> float:
        return bottom - min(max(axis.place(_MOST if error is None else error), 0.0), 1.0) * (bottom - _TOP)

    parts = [
        f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in axis.ticks
    ]
    parts += [f'<text x="{x(lam):.1f}" y="{bottom + 16}" text-anchor="middle">{lam:g}</text>' for lam in (0, 0.5, 1)]
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 2}" text-anchor="middle">lambda</text>')
    nothing = f"{y(axis.nothing):.1f}"
    parts.append(f'<line class="nothing" x1="{_LEFT}" x2="{right}" y1="{nothing}" y2="{nothing}"/>')
    ends = float(right)
    for family, colour in colours.items():
        known = [one for one in place["estimators"] if one["family"] == family and one["agreement"][figure]]
        curve = sorted((one["lam"], one["agreement"][figure]) for one in known if one["lam"] is not None)
        if curve:
            above = [f"{x(lam):.1f},{y(high):.1f}" for lam, (_, _, high) in curve]
            below = [f"{x(lam):.1f},{y(low):.1f}" for lam, (_, low, _) in reversed(curve)]
            line = " ".join(f"{x(lam):.1f},{y(error):.1f}" for lam, (error, _, _) in curve)
            parts.append(f'<polygon points="{" ".join(above + below)}" fill="{colour}" opacity="0.12"/>')
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [_dot(x(lam), y(error[0]), colour, f"{family}, lambda {lam:g}", error) for lam, error in curve]
        for one in known if not curve else ():
            ends -= _APART
            parts += _level(one, figure, colour, y, ends)
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    about = f"<small>{place['num_decisions']} decisions</small>"
    return f'<figure class="card chart"><h3>{escaped(place["name"])}{about}</h3>{svg}</figure>'


def _level(
    one: Mapping[str, Any], figure: str, colour: str, y: Callable[[float | None], float], end: float
) -> list[str]:
    """What has no lam: a line across, with its interval where it ends."""
    estimate, low, high = (y(value) for value in one["agreement"][figure])
    return [
        f'<line x1="{_LEFT}" x2="{end:.1f}" y1="{estimate:.1f}" y2="{estimate:.1f}" stroke="{colour}"/>',
        f'<line x1="{end:.1f}" x2="{end:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" opacity="0.5"/>',
        _dot(end, estimate, colour, one["name"], one["agreement"][figure]),
    ]


def _dot(x: float, y: float, colour: str, name: str, interval: Sequence[float | None]) -> str:
    label = f"{name}: {_shown(interval)}"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{escaped(label)}</title></circle>'


def _whisker(interval: Sequence[float | None] | None, axis: _Axis, colour: str) -> str:
    if interval is None:
        return '<span class="number">–</span>'

    def at(value: float | None) -> float:
        return 100.0 if value is None else 100.0 * min(max(axis.place(value), 0.0), 1.0)

    estimate, low, high = (at(value) for value in interval)
    width = max(high - low, 0.8)
    return (
        f'<span class="number">{_shown(interval, bold=True)}</span><span class="whisker">'
        f'<i class="zero" style="left: {at(axis.nothing):.1f}%"></i>'
        f'<i class="bar" style="left: {low:.1f}%; width: {width:.1f}%; background: {colour}"></i>'
        f'<i class="dot" style="left: {estimate:.1f}%; background: {colour}"></i></span>'
    )


def _shown(interval: Sequence[float | None] | None, *, bold: bool = False) -> str:
    if interval is None:
        return "–"
    estimate, low, high = ("∞" if value is None else f"{value:.2f}".replace("-", "−") for value in interval)
    return f"<b>{estimate}</b> [{low}, {high}]" if bold else f"{estimate} [{low}, {high}]"


def _legend(colours: Mapping[str, str]) -> str:
    keys = (
        f'<span class="key"><i class="swatch" style="background: {colour}"></i>{escaped(family)}</span>'
        for family, colour in colours.items()
    )
    return f'<p class="keys">{"".join(keys)}</p>'


def _notes(found: Mapping[str, Any]) -> list[str]:
    said = [
        _how(found),
        "E[A²] is what saying nothing gets wrong; the noise of A is of the branches, and is subtracted.",
    ]
    said += [f"{family}: absent, because {why}" for family, why in found["absent"].items()]
    said += found["notes"]
    return [*said, *(f"{place['name']}: {place['problem']}" for place in found["places"] if place["problem"])]
