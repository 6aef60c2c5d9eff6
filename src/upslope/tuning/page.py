"""The result of tuning as one HTML page that needs nothing beside itself: estimates, history, importance, trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from upslope.report.document import Bars
from upslope.report.html import document
from upslope.report.html import escaped as escape
from upslope.tuning.plan import Plan
from upslope.tuning.space import written

if TYPE_CHECKING:
    from upslope.tuning.result import Tuning
    from upslope.tuning.trials import Trial

_WIDTH, _HEIGHT = 960, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 12, 34
_COLOUR = {"finished": "var(--line-0)", "pruned": "var(--line-1)", "failed": "var(--alarm)"}


def page(found: Tuning, plan: Plan) -> str:
    """The whole page; any text in it is escaped, and it runs no script."""
    name = plan.folder.resolve().name
    parts = [
        _tiles(found),
        _estimates(found),
        f"<h2>History <small>{escape(found.metric)} of each trial, and the best so far</small></h2>{_history(found)}",
        _importance(found.importance),
        _trials(found),
        f'<h2>The recipe found</h2><div class="card"><p class="quiet">upslope train {escape(found.path)}</p>'
        f"<details><summary>all settings</summary><pre>{escape(plan.settings(found.values).to_toml())}</pre></details>"
        f"<details><summary>the space</summary><pre>{escape(plan.space.to_toml())}</pre></details></div>",
    ]
    ended = f"{found.count('finished')} finished, {found.count('pruned')} pruned, {found.count('failed')} failed"
    return document("\n".join(parts), title=f"Tuning {name}", about=ended)


def _tiles(found: Tuning) -> str:
    low, high = found.estimate.low, found.estimate.high
    tiles = [
        ("on prompts tuning never saw", f"{found.estimate.estimate:.3f}", f"95% interval {low:.3f} to {high:.3f}"),
        ("on prompts tuned on", f"{found.naive.estimate:.3f}", "it was chosen by these, which flatters it"),
        ("best trial", str(found.best), f"of {len(found.trials)}, {found.seeds} seed{'s' * (found.seeds > 1)} each"),
        *((name, _value(value), "") for name, value in found.values.items()),
    ]
    shown = (
        f'<div class="card tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(about)}</span></div>'
        for name, value, about in tiles
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def _estimates(found: Tuning) -> str:
    """Both intervals on one scale, and what has to be known of them."""
    rows = [(f"{name} ({count})", i.estimate, i.low, i.high) for name, i, count in found.estimates()]
    notes = "".join(f'<p class="quiet">{escape(note)}</p>' for note in found.notes)
    return Bars(f"The best setting: {found.metric}, by held-out prompts", rows, digits=4).html() + notes


def _history(found: Tuning) -> str:
    """Every trial's metric over its number, and the best so far as a staircase."""
    shown = [trial for trial in found.trials if trial.metric is not None and math.isfinite(trial.metric)]
    ticks = _ticks([trial.metric or 0.0 for trial in shown])
    last = max(len(found.trials) - 1, 1)

    def x(number: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * number / last

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    drawn = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="var(--grid)"/>'
        f'<text x="{_LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.4g}</text>'
        for t in ticks
    ]
    numbers = sorted({round(last * share / 4) for share in range(5)})
    drawn += [f'<text x="{x(n):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{n}</text>' for n in numbers]
    drawn.append(f'<path d="{_staircase(shown, x, y, last)}" fill="none" stroke="var(--line-0)" stroke-width="1.5"/>')
    drawn += [_dot(trial, x(trial.number), y(trial.metric or 0.0)) for trial in shown]
    keys = "".join(
        f'<span class="key"><i class="swatch" style="background:{colour}"></i>{state}<b>{found.count(state)}</b></span>'
        for state, colour in _COLOUR.items()
    )
    return (
        f'<figure class="card chart"><div class="keys">{keys}</div><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="metric of every trial" font-size="12" fill="var(--muted)" style="max-width:1200px">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _dot(trial: Trial, x: float, y: float) -> str:
    title = f"trial {trial.number}, {trial.state}: {trial.metric:.4f}; {written(trial.values)}"
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_COLOUR.get(trial.state)}"'
    return f"<circle {place}><title>{escape(title)}</title></circle>"


def _staircase(shown: Sequence[Trial], x, y, last: int) -> str:  # type: ignore[no-untyped-def]
    finished = [trial for trial in shown if trial.state == "finished"]
    best, path = -math.inf, ""
    for trial in finished:
        if (trial.metric or 0.0) > best:
            best = trial.metric or 0.0
            path += f"{'H' if path else 'M'}{x(trial.number):.1f}" + (f"V{y(best):.1f}" if path else f" {y(best):.1f}")
    return path + f"H{x(last):.1f}"


def _importance(shares: Mapping[str, float]) -> str:
    about = "<small>what sets the best trials apart, by PED-ANOVA; of few trials a hint only</small>"
    if not shares:
        return f'<h2>What mattered {about}</h2><div class="card quiet">too few trials finished to say</div>'
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="number">{share:.0%}</td><td style="width:60%"><i style="display:block;'
        f'height:10px;border-radius:3px;width:{100 * share:.1f}%;background:var(--line-0)"></i></td></tr>'
        for name, share in shares.items()
    )
    return f'<h2>What mattered {about}</h2><div class="card heldout"><table>{rows}</table></div>'


def _trials(found: Tuning) -> str:
    """One row a trial, one column a setting; the best one's number is marked."""
    names = list(dict.fromkeys(name for trial in found.trials for name in trial.values))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("trial", "state", "metric", *names, ""))
    rows = []
    for trial in found.trials:
        cells = [trial.state, "" if trial.metric is None else f"{trial.metric:.4f}"]
        cells += [_value(trial.values[name]) if name in trial.values else "" for name in names]
        mark = ' class="mark"' if trial.number == found.best else ""
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><td{mark}>{trial.number}</td>{shown}<td class="quiet">{escape(trial.note)}</td></tr>')
    table = f'<table class="wide"><tr>{head}</tr>{"".join(rows)}</table>'
    return f'<h2>Trials</h2><div class="card scroll">{table}</div>'


def _ticks(values: Sequence[float]) -> list[float]:
    """About five round numbers around all values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    step = 10.0 ** math.floor(math.log10((high - low) or abs(high) or 1.0))
    step *= next(part for part in (0.2, 0.5, 1.0, 2.0, 5.0) if (high - low) / (step * part) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
