"""Figures of what was learnt: F1 and BLEU from counts, paired intervals, and their table."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("learning")


def counts_of(truth, decided, classes):
    """[n, K, 3], a decision a row."""
    there, found = np.eye(classes)[truth], np.eye(classes)[decided]
    return np.stack([there * found, found, there], axis=-1)


def test_f1_is_scikit_learns(learning):
    random = np.random.default_rng(0)
    truth, decided = random.integers(4, size=300), random.integers(4, size=300)
    counts = counts_of(truth, decided, 5).sum(0, keepdims=True)  # the fifth class is nowhere
    assert learning.macro_f1(counts)[0] == pytest.approx(f1_score(truth, decided, average="macro"))
    assert learning.micro_f1(counts)[0] == pytest.approx(f1_score(truth, decided, average="micro"))


def test_paired_intervals_cover_the_gain_as_often_as_they_say(learning):
    """Accuracy 0.7 and 0.8 on the same 100 rows, whose difficulty both share; three seeds; the gain is 0.1."""
    random, covered, saved = np.random.default_rng(0), 0, 0.0
    for _ in range(100):
        hard = random.random(100)
        right = [np.stack([(hard < level).astype(int)] * 3) for level in (0.7, 0.8)]
        before, after = (np.stack([counts_of(np.ones(100, int), row, 2) for row in rows]) for rows in right)
        one, other, gain = learning.paired(before, after, lambda c: c[:, 1, 0] / c[:, 1, 2])
        assert gain[0] == pytest.approx(other[0] - one[0])
        saved += (other[2] - other[1]) - (gain[2] - gain[1])
        covered += gain[1] <= 0.1 <= gain[2]
    assert saved / 100 > 0.02  # pairing removes what both share
    assert covered >= 87  # of 95 expected; 5 standard deviations of 100 draws are 11


def test_corpus_bleu_from_counts_is_sacrebleus(learning):
    translation = importlib.import_module("translation")
    references = ["Ein Hund läuft durch das Gras .", "Zwei Männer stehen am Ufer .", "Eine Frau liest ein Buch ."]
    texts = ["Ein Hund läuft durch Gras .", "Zwei Männer sitzen am Ufer .", "Ein Mann liest das Buch ."]
    rows = [_Row(text, _Prompt({"de": reference})) for text, reference in zip(texts, references, strict=True)]
    found = translation.bleu(translation.bleu_counts(rows).sum(0, keepdims=True))
    assert found[0] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)


class _Prompt:
    def __init__(self, columns):
        self.columns = columns


class _Row:
    def __init__(self, text, prompt):
        self.text, self.prompt = text, prompt


def test_table_of_what_was_learnt(learning, tmp_path, capsys):
    results = importlib.import_module("results")
    estimates = (0.9, 0.85, 0.95), (0.97, 0.93, 0.99), (0.07, 0.01, 0.13)
    case = results.learnt("macro F1", *estimates, names=("labels", "and reward"), unit="F1", wanted="gain above 0")
    results.report("x", [case], results=tmp_path, notes=["by seed: ..."])
    figures = "0.900 [0.850, 0.950] | 0.970 [0.930, 0.990] | 0.070 [0.010, 0.130]"
    line = f"| macro F1 | F1 | labels | and reward | {figures} |"
    assert f"{line} gain above 0 |" in capsys.readouterr().out
    assert line in results.rewritten("<!-- results: x -->\nold\n<!-- end -->", tmp_path)
