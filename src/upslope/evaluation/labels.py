"""How well labels were chosen: precision, recall and F1 by class with intervals, confusions, calibration, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.intervals import Interval
from upslope.records import Rollout
from upslope.rewards import find_spans

_RESAMPLES = 2_000
_BINS = 10
Span = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class: how often it is there, and how well it is found."""

    name: str
    support: int
    precision: Interval
    recall: Interval
    f1: Interval


@dataclass(frozen=True, slots=True)
class F1Table:
    """Scores by class; macro is the mean of the classes' F1, micro the F1 of all decisions together."""

    classes: tuple[ClassScores, ...]
    macro: Interval
    micro: Interval


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean confidence and accuracy of the decisions in each bin of confidence, their number, and the expected error.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """

    bins: tuple[tuple[float, float, int], ...]
    expected_error: float


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What was decided against what is right.

    table: by label, of every decision; entities: of whole spans, where labels are BIO tags. `confusion[i][j]` counts
    decisions of labels[j] where labels[i] is right. errors: some rows that are wrong, by how sure the model was.
    """

    labels: tuple[str, ...]
    table: F1Table
    entities: F1Table | None
    confusion: tuple[tuple[int, ...], ...]
    calibration: Calibration
    errors: tuple[dict[str, Any], ...]


def label_report(
    rollouts: Sequence[Rollout], *, labels: Sequence[str], column: str, num_errors: int = 20, seed: int = 0
) -> LabelReport:
    """The report of rollouts that hold the right labels in a column: one, or a list with one a word.

    Intervals are 95% percentile bootstraps over rows. Raises: DataError without rows.
    """
    scored = [rollout for rollout in rollouts if rollout.actions]
    if not scored:
        raise DataError("there are no decisions to report on")
    pairs = _pairs(scored, labels, column)
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for truth, decided in pairs:
        np.add.at(confusion, (truth, decided), 1)
    tagged = any(label.startswith(("B-", "I-")) for label in labels)
    sure = [_confidence(rollout) for rollout in scored]
    return LabelReport(
        labels=tuple(labels),
        table=f1_table(decision_counts(scored, labels=labels, column=column), labels, seed=seed),
        entities=_entity_table(scored, column, seed) if tagged else None,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        calibration=calibration(np.concatenate(sure), np.concatenate([t == d for t, d in pairs])),
        errors=_errors(scored, pairs, sure, labels, num_errors),
    )


def f1_table(counts: np.ndarray, names: Sequence[str], *, confidence: float = 0.95, seed: int = 0) -> F1Table:
    """Scores of classes [K] from counts [n, K, 3] of each row: (found and right, found, there).

    A class that is neither found nor there scores 0 and counts in the macro mean, as scikit-learn has it; one that
    never occurs in the whole table does not count.
    """
    weights = np.random.default_rng(seed).multinomial(len(counts), [1 / len(counts)] * len(counts), size=_RESAMPLES)
    total = counts.sum(0)
    present = total[:, 1:].sum(1) > 0
    resampled = np.tensordot(weights, counts, axes=1)  # [resamples, K, 3]

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        tail = 50.0 * (1.0 - confidence)
        low, high = np.percentile(statistic(resampled), [tail, 100.0 - tail])
        return Interval(float(statistic(total[None])[0]), float(low), float(high))

    classes = [
        ClassScores(
            name=names[k],
            support=int(total[k, 2]),
            precision=interval(lambda c, k=k: _ratio(c[:, k, 0], c[:, k, 1])),  # type: ignore[misc]
            recall=interval(lambda c, k=k: _ratio(c[:, k, 0], c[:, k, 2])),  # type: ignore[misc]
            f1=interval(lambda c, k=k: _f1(c[:, k])),  # type: ignore[misc]
        )
        for k in np.flatnonzero(present).tolist()
    ]
    macro = interval(lambda c: _f1(c[:, present]).mean(1))
    return F1Table(tuple(classes), macro, interval(lambda c: _f1(c.sum(1))))


def calibration(confidences: np.ndarray, right: np.ndarray) -> Calibration:
    """Confidence against accuracy of decisions [m], in ten bins of equal width."""
    place = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
    bins, error = [], 0.0
    for number in range(_BINS):
        inside = place == number
        if inside.any():
            sure, correct = float(confidences[inside].mean()), float(right[inside].mean())
            bins.append((sure, correct, int(inside.sum())))
            error += abs(sure - correct) * float(inside.mean())
    return Calibration(tuple(bins), error)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return ratio


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 from counts [..., 3]: 2 right / (found + there)."""
    return _ratio(2.0 * counts[..., 0], counts[..., 1] + counts[..., 2])


def decision_counts(rollouts: Sequence[Rollout], *, labels: Sequence[str], column: str) -> np.ndarray:
    """Counts [n, K, 3] of each row's decisions by label: found and right, found, there; what `f1_table` takes."""
    counts = np.zeros((len(rollouts), len(labels), 3))
    for row, (truth, decided) in enumerate(_pairs(rollouts, labels, column)):
        np.add.at(counts[row, :, 0], truth[truth == decided], 1)
        np.add.at(counts[row, :, 1], decided, 1)
        np.add.at(counts[row, :, 2], truth, 1)
    return counts


def span_counts(rollouts: Sequence[Rollout], *, column: str) -> tuple[np.ndarray, list[str]]:
    """Counts [n, K, 3] of each row's spans by type, and the types [K], by seqeval's definition.

    A span is right when type, beginning and end are.
    """
    spans = [
        (set(find_spans(rollout.prompt.columns[column])), set(find_spans(rollout.text.split()))) for rollout in rollouts
    ]
    types = sorted({span[0] for both in spans for one in both for span in one})
    counts = np.zeros((len(spans), len(types), 3))
    for row, (there, found) in enumerate(spans):
        for which, chosen in enumerate((there & found, found, there)):
            for name, count in Counter(span[0] for span in chosen).items():
                counts[row, types.index(name), which] = count
    return counts, types


def _pairs(rollouts: Sequence[Rollout], labels: Sequence[str], column: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is right and what was decided in each row, as indices of labels."""
    known = {label: index for index, label in enumerate(labels)}
    truths = [[known[label] for label in _as_list(rollout.prompt.columns[column])] for rollout in rollouts]
    return [(np.array(truth), np.array(rollout.actions)) for truth, rollout in zip(truths, rollouts, strict=True)]


def _entity_table(rollouts: Sequence[Rollout], column: str, seed: int) -> F1Table:
    counts, types = span_counts(rollouts, column=column)
    if not types:
        return F1Table((), Interval(0.0, 0.0, 0.0), Interval(0.0, 0.0, 0.0))
    return f1_table(counts, types, seed=seed)


def _errors(
    rollouts: Sequence[Rollout],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    sure: Sequence[np.ndarray],
    labels: Sequence[str],
    count: int,
) -> tuple[dict[str, Any], ...]:
    """The wrong rows of which the model was surest, at the decision that it got wrong."""
    found = []
    for rollout, (truth, decided), confidences in zip(rollouts, pairs, sure, strict=True):
        wrong = np.flatnonzero(truth != decided)
        if wrong.size:
            worst = int(wrong[confidences[wrong].argmax()])
            words = rollout.prompt.columns.get("words")
            found.append(
                {
                    "id": rollout.prompt.id,
                    "text": rollout.prompt.text,
                    "word": words[worst] if words else None,
                    "right": labels[truth[worst]],
                    "decided": labels[decided[worst]],
                    "confidence": float(confidences[worst]),
                }
            )
    return tuple(sorted(found, key=lambda error: -float(error["confidence"]))[:count])


def _confidence(rollout: Rollout) -> np.ndarray:
    """The probability of each decision."""
    confidence: np.ndarray = np.exp(np.array(rollout.engine_logprobs))
    return confidence


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
