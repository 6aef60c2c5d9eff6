"""What was measured: faults/results.json, one entry a row of the table, and its section of BENCHMARKS.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faults.disks import can_mount
from faults.table import TABLE
from faults.verdict import Fault, Verdict

RESULTS = Path(__file__).with_name("results.json")
PAGE = RESULTS.parents[1] / "BENCHMARKS.md"
_BLOCK = re.compile(r"<!-- faults -->\n.*?<!-- end -->", re.DOTALL)
Rows = dict[str, dict[str, Any]]


def keep(fault: Fault, verdicts: Sequence[Verdict], seed: int) -> None:
    """Put a row that was injected in full into results.json, and bring the page up to date."""
    rows = read()
    rows[fault.name] = {
        "measured": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "disk": "tmpfs" if can_mount() else "RLIMIT_FSIZE",
        "seed": seed,
        "injected": len(verdicts),
        "survived": sum(verdict.problem is None for verdict in verdicts),
        "seconds": round(sum(verdict.seconds for verdict in verdicts), 1),
        "problems": {verdict.case: verdict.problem for verdict in verdicts if verdict.problem is not None},
    }
    ordered = {row.name: rows[row.name] for row in TABLE if row.name in rows}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), ordered), encoding="utf-8")


def read() -> Rows:
    """The rows measured so far, by name."""
    found: Rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return found


def rewritten(text: str, rows: Rows) -> str:
    """The page with its section brought up to date."""
    return _BLOCK.sub(lambda _: f"<!-- faults -->\n{section(rows)}\n<!-- end -->", text)


def section(rows: Rows) -> str:
    """The two fractions and the table, in Markdown."""
    measured = [(fault, rows[fault.name]) for fault in TABLE if fault.name in rows]
    if not measured:
        return "Not measured yet."
    fractions = [
        _fraction("Faults survived", [row for fault, row in measured if not fault.refused]),
        _fraction("Bad inputs refused", [row for fault, row in measured if fault.refused]),
    ]
    lines = [
        "\n\n".join(filter(None, fractions)),
        "",
        "| fault | what is done | passes when | n | survived | s | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault, row in measured:
        cells = (fault.name, fault.done, fault.passes, row["injected"], row["survived"], row["seconds"], _when(row))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    waiting = ", ".join(fault.name for fault in TABLE if fault.name not in rows)
    lines += [f"\nNot measured yet: {waiting}."] if waiting else []
    failed = [(fault.name, case, why) for fault, row in measured for case, why in row["problems"].items()]
    return "\n".join([*lines, *(f"\nNot survived: {name}, {case}: {why}." for name, case, why in failed)])


def _fraction(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    survived, injected = (sum(row[name] for row in rows) for name in ("survived", "injected"))
    dates = ", ".join(sorted({row["measured"] for row in rows}))
    return f"{what}: **{survived} of {injected}**, measured {dates}." if rows else ""


def _when(row: Mapping[str, Any]) -> str:
    return f"{row['measured']}, {row['machine']}, seed {row['seed']}, disk by {row['disk']}"
