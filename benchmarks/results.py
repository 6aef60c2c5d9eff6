"""From measured sides to cases, a table and results/NAME.json; the standard library only.

    python benchmarks/results.py      # rewrites the tables of BENCHMARKS.md from results/*.json

A table stands there between `<!-- results: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import FOLDER, GIB, Measured

RESULTS = FOLDER / "results"
PAGE = FOLDER.parent / "BENCHMARKS.md"
Case = dict[str, Any]
Estimate = tuple[float, float, float]
_BLOCK = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_PER_SIDE = ("name", "min", "max", "tokens_per_s", "peak_bytes", "share", "problem", "versions")


def compare(name: str, upslope: Measured, peer: Measured | None, *, unit: str, least_s: float | None = None) -> Case:
    """One case of the results: medians, ranges, and ratios.

    ratio is above 1 where upslope is ahead, by medians; ratio_min and ratio_max are over the pairs of repetitions done
    one after the other, over all pairs where a side had fewer. memory_ratio is upslope / peer. least_s is the time that
    the machine's ceilings allow for one repetition, of which each side's share is taken.
    """
    case = _empty(name, unit) | _side("upslope", upslope, unit, least_s)
    if peer is None:
        return case
    case |= _side("peer", peer, unit, least_s)
    if case["upslope"] and case["peer"]:
        paired = len(upslope.seconds) == len(peer.seconds)
        pairs = (zip if paired else itertools.product)(upslope.seconds, peer.seconds)
        ratios = [other / own for own, other in pairs]
        case["ratio"] = statistics.median(peer.seconds) / statistics.median(upslope.seconds)
        case |= {"ratio_min": min(ratios), "ratio_max": max(ratios)}
        case["memory_ratio"] = case["upslope_peak_bytes"] / case["peer_peak_bytes"]
    return case


def plain(name: str, upslope: float, peer: float, *, unit: str, peer_name: str) -> Case:
    """A case of two figures, of which less is better, where the peer is a figure rather than a side."""
    found = {"upslope": upslope, "peer": peer, "ratio": peer / upslope if upslope else None}
    return _empty(name, unit) | found | {"upslope_name": "upslope", "peer_name": peer_name}


def learnt(
    name: str, before: Estimate, after: Estimate, gain: Estimate, *, names: tuple[str, str], unit: str, wanted: str
) -> Case:
    """A case of what was learnt: a figure of the peer's (before) and upslope's (after), of which more is better, and
    the paired difference; each an estimate with the bounds of its 95% interval. wanted: what is aimed at, in words."""
    case = _empty(name, unit) | {"peer_name": names[0], "upslope_name": names[1], "wanted": wanted}
    for key, (value, low, high) in {"peer": before, "upslope": after, "gain": gain}.items():
        case |= {key: value, f"{key}_min": low, f"{key}_max": high}
    return case


def _empty(name: str, unit: str) -> Case:
    figures = dict.fromkeys(("peer", "upslope", "ratio", "ratio_min", "ratio_max", "memory_ratio"))
    return {"name": name, "unit": unit, **figures, **{f"{s}_{k}": None for s in ("upslope", "peer") for k in _PER_SIDE}}


def _side(which: str, measured: Measured, unit: str, least_s: float | None) -> Case:
    """One side's part of a case; nothing but its name and problem where it did not run."""
    found: Case = {"name": measured.side.name, "problem": measured.problem, "versions": measured.versions}
    case = {f"{which}_{key}": value for key, value in found.items()}
    if not measured.answers:
        return case
    values, seconds = measured.values(unit), statistics.median(measured.seconds)
    tokens = measured.answers[-1].get("tokens")
    figures = {
        "min": min(values),
        "max": max(values),
        "tokens_per_s": tokens / seconds if tokens else None,
        "peak_bytes": measured.peak_bytes,
        "share": least_s / seconds if least_s else None,
    }
    return case | {which: statistics.median(values)} | {f"{which}_{key}": value for key, value in figures.items()}


HEADER = (
    *("case", "upslope", "peer", "unit", "upslope (range)", "peer (range)", "ratio (range)"),
    *("tokens/s", "peak GiB", "memory ratio", "share of ceiling"),
)


LEARNT_HEADER = ("case", "unit", "before", "after", "before [95%]", "after [95%]", "gain, paired [95%]", "wanted")


def learnt_row(case: Mapping[str, Any]) -> tuple[str, ...]:
    """A case of what was learnt as the cells of its table."""
    digits = 3 if case["upslope_max"] <= 1 else 2
    figures = (
        f"{case[key]:.{digits}f} [{case[f'{key}_min']:.{digits}f}, {case[f'{key}_max']:.{digits}f}]"
        for key in ("peer", "upslope", "gain")
    )
    return (case["name"], case["unit"], case["peer_name"], case["upslope_name"], *figures, case["wanted"])


def row(case: Mapping[str, Any]) -> tuple[str, ...]:
    """A case as the cells of the table; upslope's figure stands first where a cell holds both."""
    return (
        case["name"],
        case["upslope_name"],
        case["peer_name"] or "-",
        case["unit"],
        _ranged(case, "upslope"),
        _ranged(case, "peer"),
        _ranged(case, "ratio"),
        _both(case, "tokens_per_s", "{:.0f}"),
        _both(case, "peak_bytes", "{:.2f}", GIB),
        "-" if case["memory_ratio"] is None else f"{case['memory_ratio']:.2f}",
        _both(case, "share", "{:.2f}"),
    )


def _ranged(case: Mapping[str, Any], key: str) -> str:
    """A median with its range, or why there is none."""
    value, low, high = case[key], case[f"{key}_min"], case[f"{key}_max"]
    if value is None:
        return case.get(f"{key}_problem") or "-"
    if 0 < value < 5e-4:
        return f"{value:.1e}"
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}" + (f" ({low:.{digits}f} .. {high:.{digits}f})" if low is not None else "")


def _both(case: Mapping[str, Any], key: str, form: str, scale: float = 1.0) -> str:
    values = [case[f"{side}_{key}"] for side in ("upslope", "peer")]
    cells = ["-" if value is None else form.format(value / scale) for value in values]
    return "-" if cells == ["-", "-"] else " / ".join(cells)


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """The cases, all of speed or all of what was learnt, as a Markdown table."""
    header, cells_of = (LEARNT_HEADER, learnt_row) if "gain" in cases[0] else (HEADER, row)
    lines = [header, ("---",) * len(header), *(cells_of(case) for case in cases)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def report(
    benchmark: str,
    cases: Sequence[Case],
    *,
    ceilings: Mapping[str, float] | None = None,
    results: Path = RESULTS,
    notes: Sequence[str] = (),
) -> None:
    """Print the table and write results/BENCHMARK.json.

    Raises: SystemExit, once that is done, where a side could not run: a benchmark without its peer is no benchmark.
    """
    document = {
        "benchmark": benchmark,
        "measured": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(),
        "ceilings": dict(ceilings or {}),
        "notes": list(notes),
        "cases": list(cases),
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{benchmark}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\n{benchmark}\n\n{described(document)}", flush=True)
    if failed := {case[f"{side}_name"] for case in cases for side in ("upslope", "peer") if case[f"{side}_problem"]}:
        raise SystemExit(f"{benchmark}: {', '.join(sorted(failed))} could not run")


def described(document: Mapping[str, Any]) -> str:
    """A result in Markdown: where and when, with what, the notes and the table."""
    where = document["machine"]
    place = f"{where['processor']}, {where['cores']} cores, {where['memory_gib']:.0f} GiB, {where['system']}"
    ceilings = ", ".join(f"{value:.0f} {name}" for name, value in document["ceilings"].items())
    lines = [f"Measured {document['measured']} on {place}." + (f" Ceilings: {ceilings}." if ceilings else "")]
    lines += [f"Versions of {name}: {found}." for name, found in _versions(document["cases"]).items()]
    return "\n".join([*lines, *(f"{note}." for note in document["notes"]), "", table(document["cases"])])


def _versions(cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Side -> the packages it ran on; sides on the same packages stand together."""
    sides: dict[str, list[str]] = {}
    for case in cases:
        for which in ("upslope", "peer"):
            if found := case[f"{which}_versions"]:
                packages = ", ".join(f"{name} {version}" for name, version in found.items())
                names = sides.setdefault(packages, [])
                names += [case[f"{which}_name"]] if case[f"{which}_name"] not in names else []
    return {"; ".join(names): packages for packages, names in sides.items()}


def rewritten(text: str, results: Path = RESULTS) -> str:
    """The page with its tables brought up to date."""
    return _BLOCK.sub(lambda match: _block(match[1], results), text)


def _block(name: str, results: Path) -> str:
    path, text = results / f"{name}.json", "Not measured yet."
    if path.exists():
        text = described(json.loads(path.read_text(encoding="utf-8")))
    return f"<!-- results: {name} -->\n{text}\n<!-- end -->"


def machine() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB,
        "system": platform.platform(),
    }


def processor() -> str:
    """The processor's model where the system says it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
