"""Two models compared by what lm-evaluation-harness logged of them."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.comparison import Comparison, Look
from upslope.evaluation.paired import Method, Pairs, difference

_NAME = re.compile(r"samples_(.+)_\d{4}-\d{2}-\d{2}T")
Line = Mapping[str, Any]


def compare_logs(
    a: Path | str,
    b: Path | str,
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    cluster: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    method: Method = "t",
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Comparison:
    """J(b) - J(a) over the documents that both logs hold, as `compare` finds it of models.

    a, b: files samples_TASK_DATE.jsonl that `lm_eval --log_samples` wrote, paired by doc_id. metric: one that they log;
    by default the only one. filter_name: the harness's filter, where it logged several ways to read an answer. cluster:
    a field of the documents whose equal values hang together; by default a document stands for itself, and repeats of
    one are one cluster. Documents that only one log holds, or whose metric is not finite, are left out and counted.
    Whether the two shared random numbers is not known.

    Raises: DataError for a file that is no such log, documents that differ under one doc_id, none in common, or a
    metric or filter that has to be named.
    """
    started = time.perf_counter()
    for path in (a, b):
        if not Path(path).is_file():
            raise DataError(f"{path} is no file: a log can only be compared with another log")
    logs = [_read(Path(path), filter_name) for path in (a, b)]
    metric = metric or _only_metric(logs[0], a)
    ids, notes = _common(logs, (a, b), metric)
    rewards = [np.array([[float(log[i][metric])] for i in ids]) for log in logs]
    clusters = _clusters([logs[0][i] for i in ids], cluster, a)
    how: dict[str, Any] = {"method": method, "confidence": confidence, "margin": margin, "bounds": bounds, "seed": seed}
    found = difference(Pairs(rewards[0], rewards[1], clusters), **how)
    named = _NAME.search(Path(a).name)
    return Comparison(
        names=_names(Path(a), Path(b)),
        task=named[1] if named else Path(a).stem,
        metric=metric,
        means=(float(rewards[0].mean()), float(rewards[1].mean())),
        difference=found,
        looks=(Look(found.num_prompts, found.interval, found.verdict),),
        common_numbers=False,
        num_tokens=0,
        notes=(*notes, *found.notes),
        generating_s=0.0,
        noise_s=0.0,
        scoring_s=0.0,
        added_s=time.perf_counter() - started,
    )


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The folders, which the harness names by the models, where these tell the two apart; else the files."""
    return (a.parent.name, b.parent.name) if a.parent.name != b.parent.name else (str(a), str(b))


def _read(path: Path, filter_name: str | None) -> dict[int, Line]:
    """doc_id -> line, of one filter."""
    lines = _lines(path)
    filters = sorted({str(line["filter"]) for line in lines})
    if filter_name not in (None, *filters) or (filter_name is None and len(filters) > 1):
        raise DataError(f"{path} logs the filters {', '.join(filters)}; say which one")
    chosen = [line for line in lines if filter_name in (None, line["filter"])]
    found = {line["doc_id"]: line for line in chosen}
    if len(found) < len(chosen):
        twice = Counter(line["doc_id"] for line in chosen).most_common(1)[0][0]
        raise DataError(f"{path} holds document {twice} more than once; give the log of one run")
    return found


def _lines(path: Path) -> list[Line]:
    """Every line. Raises: DataError naming the line that is none of the harness's."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    found: list[Line] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(line, dict) or not line.keys() >= {"doc_id", "doc_hash", "filter"}:
            raise DataError(f"{path}, line {number} is none of lm_eval's samples: no doc_id, doc_hash or filter")
        found.append(line)
    return found


def _only_metric(log: Mapping[int, Line], path: Path | str) -> str:
    metrics = sorted({str(name) for line in log.values() for name in line.get("metrics", ())})
    if len(metrics) != 1:
        raise DataError(f"{path} logs the metrics {', '.join(metrics) or 'of no name'}; say which by metric")
    return metrics[0]


def _common(
    logs: Sequence[Mapping[int, Line]], paths: Sequence[Path | str], metric: str
) -> tuple[list[int], tuple[str, ...]]:
    """Ids of the documents that both could be scored on, and notes on the others. Raises: DataError."""
    one, other = logs
    both = sorted(one.keys() & other.keys())
    for i in both:
        if one[i]["doc_hash"] != other[i]["doc_hash"]:
            raise DataError(f"document {i} of {paths[0]} is another one in {paths[1]}: were both run on the same task?")
    scored = [i for i in both if all(_is_scored(log[i], metric, path) for log, path in zip(logs, paths, strict=True))]
    if not scored:
        raise DataError(f"{paths[0]} and {paths[1]} have no document in common with a finite {metric}")
    counts = {
        "documents are in one log only and were left out": len(one) + len(other) - 2 * len(both),
        f"documents have no finite {metric} and were left out": len(both) - len(scored),
        "prompts are worded differently in the two (a chat template, other examples)": sum(
            one[i].get("prompt_hash") != other[i].get("prompt_hash") for i in scored
        ),
    }
    return scored, tuple(f"{count} {what}" for what, count in counts.items() if count)


def _is_scored(line: Line, metric: str, path: Path | str) -> bool:
    """Whether the metric is finite. Raises: DataError where it is not logged, or no number."""
    if metric not in line:
        known = ", ".join(line.get("metrics", ()))
        raise DataError(f"{path} logs no {metric!r} of document {line['doc_id']}; it logs {known}")
    value = line[metric]
    if not isinstance(value, int | float):
        raise DataError(f"{metric} of document {line['doc_id']} in {path} is {value!r}, which is no number to average")
    return math.isfinite(value)


def _clusters(lines: Sequence[Line], column: str | None, path: Path | str) -> np.ndarray:
    names: dict[str, int] = {}
    found = []
    for line in lines:
        doc = line.get("doc", {})
        if column is not None and column not in doc:
            raise DataError(f"document {line['doc_id']} of {path} has no field {column!r} to take its cluster from")
        name = line["doc_hash"] if column is None else repr(doc[column])
        found.append(names.setdefault(name, len(names)))
    return np.array(found)
