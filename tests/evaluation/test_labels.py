"""Label reports against figures worked out by hand and published definitions."""

import json
from fractions import Fraction

import numpy as np
import pytest
from torch.testing import assert_close

from upslope.evaluation.labels import calibration, f1_table, label_report
from upslope.records import Prompt, Rollout


def decided(id, right, actions, labels, *, words=None, logprobs=None):
    columns = {"right": right} | ({"words": words} if words else {})
    return Rollout(
        prompt=Prompt(id, " ".join(words) if words else "text", columns),
        group=id,
        sample=0,
        tokens=(5,) * len(actions),
        actions=tuple(actions),
        positions=tuple(range(len(actions))),
        engine_logprobs=tuple(logprobs or (-0.1,) * len(actions)),
        text=" ".join(labels[action] for action in actions),
        stop_reason="action",
    )


def test_f1_by_class_is_that_of_the_counts():
    """Ten decisions over three labels, worked out by hand; the macro mean leaves out a label that never occurs."""
    labels = ("a", "b", "c", "never")
    pairs = ["aa", "aa", "aa", "ab", "bb", "bb", "ba", "cc", "ca", "cb"]  # right, decided
    rollouts = [decided(i, pair[0], [labels.index(pair[1])], labels) for i, pair in enumerate(pairs)]
    report = label_report(rollouts, labels=labels, column="right")
    scores = {row.name: row for row in report.table.classes}
    assert set(scores) == {"a", "b", "c"}
    precision = {"a": Fraction(3, 5), "b": Fraction(2, 4), "c": Fraction(1, 1)}
    recall = {"a": Fraction(3, 4), "b": Fraction(2, 3), "c": Fraction(1, 3)}
    f1 = {name: 2 * precision[name] * recall[name] / (precision[name] + recall[name]) for name in "abc"}
    for name, row in scores.items():
        assert row.precision.estimate == pytest.approx(float(precision[name]))
        assert row.recall.estimate == pytest.approx(float(recall[name]))
        assert row.f1.estimate == pytest.approx(float(f1[name]))
        assert row.f1.low <= row.f1.estimate <= row.f1.high
    assert [scores[name].support for name in "abc"] == [4, 3, 3]
    assert report.table.macro.estimate == pytest.approx(float(sum(f1.values()) / 3))
    assert report.table.micro.estimate == pytest.approx(6 / 10)  # of one label a row, micro F1 is accuracy
    assert report.confusion == ((3, 1, 0, 0), (1, 2, 0, 0), (1, 1, 1, 0), (0, 0, 0, 0))


def test_entities_count_whole_spans():
    """The example of seqeval's README: of the spans MISC (wrong end) and PER (right), F1 is 0.50."""
    labels = ("O", "B-MISC", "B-PER", "I-MISC", "I-PER")
    first = ["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"]
    second = ["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]
    rollouts = [
        decided(i, truth, [labels.index(tag) for tag in found], labels, words=[f"w{n}" for n in range(len(truth))])
        for i, (truth, found) in enumerate((first, second))
    ]
    report = label_report(rollouts, labels=labels, column="right")
    assert report.entities.micro.estimate == pytest.approx(0.5)
    assert {row.name: row.f1.estimate for row in report.entities.classes} == {"MISC": 0.0, "PER": 1.0}
    assert report.errors[0]["word"] in ("w2", "w3")
    json.dumps(report.errors)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Accuracies of 200 samples of 150 decisions, each right with probability 0.8: 95% of intervals hold 0.8."""
    random, covered = np.random.default_rng(0), 0
    for seed in range(200):
        right = random.random(150) < 0.8
        counts = np.zeros((150, 2, 3))
        counts[:, 0, 2] = 1
        counts[right, 0, 0] = counts[right, 0, 1] = 1
        counts[~right, 1, 1] = 1
        interval = f1_table(counts, ("a", "b"), seed=seed).micro
        covered += interval.low <= 0.8 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_calibration_is_the_gap_of_confidence_and_accuracy():
    """Two bins worked out by hand: 0.75 sure and half right, 0.95 sure and all right."""
    found = calibration(np.array([0.75] * 4 + [0.95] * 6), np.array([1, 1, 0, 0] + [1] * 6, dtype=bool))
    assert found.expected_error == pytest.approx(0.4 * 0.25 + 0.6 * 0.05)
    assert_close(found.bins, ((0.75, 0.5, 4), (0.95, 1.0, 6)))
    perfect = calibration(np.array([1.0, 1.0]), np.array([True, True]))
    assert perfect.expected_error == 0.0
