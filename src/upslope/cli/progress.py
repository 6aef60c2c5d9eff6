"""Live progress of a run: step, reward with a sparkline, KL, length, tokens a second, time to go."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last `width` finite values as bars between their smallest and largest."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def duration(seconds: float) -> str:
    """Seconds as 0:07 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class LiveProgress:
    """A tracker that draws: a live table on a terminal, one line a step elsewhere.

    max_train_s limits the training time, of which trained_s were spent before, by the run that is resumed.
    """

    def __init__(
        self, console: Console, *, total_steps: int, max_train_s: float | None = None, trained_s: float = 0.0
    ) -> None:
        self._console = console
        self._total = total_steps
        self._limit_s, self._trained_s = max_train_s, trained_s
        self._first: int | None = None
        self._started = time.monotonic()
        self._rewards: list[float] = []
        self._metric = ""
        self._shown: dict[str, str] = {}
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        if self._live:
            self._live.start()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Show one step or one alarm, or remember an evaluation."""
        if "alarm" in values:
            self._print(f"step {step}: alarm: {values['alarm']}")
            return
        if "evaluate/metric" in values:
            self._metric = f"{values['evaluate/metric']:.3f} at step {step}"
            if self._live:
                self._live.update(self._table())
            else:
                self._console.print(f"step {step}: held-out metric {values['evaluate/metric']:.3f}")
            return
        if self._first is None:
            self._first = step - 1  # what came before it (loading, the first evaluation) foretells nothing
            self._started = time.monotonic() - values.get("step_s", 0.0)
        self._trained_s += values.get("step_s", 0.0)
        trend = values.get("reward", values.get("loss"))
        if trend is not None:
            self._rewards.append(float(trend))
        self._shown = self._row(step, values)
        if self._live:
            self._live.update(self._table())
        else:
            self._print("  ".join(f"{name} {value}" for name, value in self._shown.items() if value))

    def close(self) -> None:
        """Leave the last picture on the screen."""
        if self._live:
            self._live.stop()

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close; an interrupt ends the program with status 130, after saying how to go on."""
        self.close()
        if isinstance(error, KeyboardInterrupt):
            self._print(str(error) or "stopped")
            raise typer.Exit(130) from None

    def _print(self, line: str) -> None:
        """A line of its own; above the table where there is one."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _row(self, step: int, values: Mapping[str, Any]) -> dict[str, str]:
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, step - (self._first or 0)) * (self._total - step)
        if self._limit_s is not None:
            left = min(left, max(0.0, self._limit_s - self._trained_s))
        name = "reward" if "reward" in values else "loss"
        row = {"step": f"{step}/{self._total}"}
        if name in values:
            row[name] = f"{values[name]:.3f}"
        row |= {
            "kl": f"{values['kl']:.3f}" if "kl" in values else "",
            "length": f"{values['length']:.1f}" if "length" in values else "",
            "tok/s": f"{values['tokens_per_s']:.0f}" if "tokens_per_s" in values else "",
            "dropped": str(values["dropped"]) if values.get("dropped") else "",
            "problem": str(values.get("problem", "")),
            "eta": duration(left),
        }
        return row

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        shown = {name: value for name, value in self._shown.items() if value}
        shown["trend"] = sparkline(self._rewards)
        if self._metric:
            shown["held-out"] = self._metric
        for name in shown:
            table.add_column(name, justify="right")
        table.add_row(*map(Text, shown.values()))
        return table
