"""How well scores order what people have judged: accuracy on pairs, its calibration, and what length would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.intervals import Interval, mean_interval
from upslope.evaluation.labels import Calibration, calibration


@dataclass(frozen=True, slots=True)
class PairReport:
    """Of held-out pairs: the share ordered right, how sure the model was, and the share that length orders right.

    accuracy counts equal scores as a half. calibration holds confidence, the larger of p and 1 - p, against accuracy,
    where p = sigmoid(score difference), as Bradley and Terry have it. longer: the share of pairs whose better side is
    the longer one, equal lengths as a half; a model that only measures length reaches the larger of it and 1 - it.
    """

    accuracy: Interval
    calibration: Calibration
    longer: Interval

    @property
    def length_baseline(self) -> float:
        """Accuracy of the better of the two rules: the longer one, the shorter one."""
        return max(self.longer.estimate, 1.0 - self.longer.estimate)

    def as_dict(self) -> dict[str, Any]:
        """For a log."""
        found = {"accuracy": self.accuracy, "longer": self.longer}
        bounds = {f"{name}{end}": value for name, i in found.items() for end, value in _bounds(i)}
        table = self.calibration
        extra = {"length_baseline": self.length_baseline, "expected_calibration_error": table.expected_error}
        return bounds | extra | {"pairs": sum(count for *_, count in table.bins), "bins": [list(b) for b in table.bins]}


def pair_report(differences: Sequence[float], lengths: Sequence[float]) -> PairReport:
    """The report of pairs: score and length of the better side minus those of the worse.

    Raises: DataError without any.
    """
    if not differences:
        raise DataError("there are no pairs to report on")
    gaps = np.asarray(differences, dtype=np.float64)
    sure = np.logaddexp(0.0, -np.abs(gaps))  # -log sigmoid
    return PairReport(
        accuracy=mean_interval([right(gap) for gap in differences]),
        calibration=calibration(np.exp(-sure), gaps > 0),
        longer=mean_interval([right(gap) for gap in lengths]),
    )


def right(difference: float) -> float:
    """1 where a difference has the right sign, 0 where the wrong one, a half where it is 0."""
    return 0.5 if difference == 0 else float(difference > 0)


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """The share of all pairs (one of above, one of below) in which the first is larger, equal ones as a half."""
    gaps = np.asarray(above, dtype=np.float64)[:, None] - np.asarray(below, dtype=np.float64)[None]
    return float(0.5 + 0.5 * np.sign(gaps).mean())


def length_correlation(scores: Sequence[float], lengths: Sequence[float]) -> float:
    """Pearson's correlation of scores with lengths, 0 where one of the two does not vary."""
    if np.std(scores) == 0 or np.std(lengths) == 0:
        return 0.0
    return float(np.corrcoef(scores, lengths)[0, 1])


def _bounds(interval: Interval) -> list[tuple[str, float]]:
    return [("", interval.estimate), ("_low", interval.low), ("_high", interval.high)]


def reliability_svg(report: PairReport) -> str:
    """The reliability plot: accuracy against confidence in each bin, whose area says how many pairs; on the diagonal
    the model is as often right as it says."""
    size, edge = 320, 40
    scale = size - 2 * edge
    most = max(count for *_, count in report.calibration.bins)

    def x(confidence: float) -> float:
        return edge + 2 * (confidence - 0.5) * scale

    def y(accuracy: float) -> float:
        return size - edge - accuracy * scale

    dots = [
        f'<circle cx="{x(sure):.1f}" cy="{y(correct):.1f}" r="{3 + 9 * (count / most) ** 0.5:.1f}" fill="#3b6ea5" '
        f'fill-opacity="0.7"><title>confidence {sure:.2f}, accuracy {correct:.2f}, {count} pairs</title></circle>'
        for sure, correct, count in report.calibration.bins
    ]
    error = report.calibration.expected_error
    text = '<text font-family="sans-serif" font-size="11" fill="#444" '
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}">',
            f'<rect width="{size}" height="{size}" fill="#fff"/>',
            f'<rect x="{edge}" y="{edge}" width="{scale}" height="{scale}" fill="none" stroke="#bbb"/>',
            f'<line x1="{x(0.5)}" y1="{y(0.5)}" x2="{x(1)}" y2="{y(1)}" stroke="#999" stroke-dasharray="4"/>',
            *dots,
            f'{text}x="{edge}" y="{size - 12}">confidence 0.5 to 1</text>',
            f'{text}x="{edge}" y="{edge - 12}">accuracy 0 to 1; expected calibration error {error:.3f}</text>',
            "</svg>\n",
        ]
    )
