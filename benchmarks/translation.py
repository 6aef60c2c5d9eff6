"""What policy gradient on BLEU adds to a translator from scratch: python benchmarks/translation.py.

multi30k_en_de with a model of random weights (examples/translation/make_model.py), trained by cross-entropy
(1_supervised.toml) and from there by policy gradient on each sampled sentence's BLEU (2_policy_gradient.toml). Corpus
BLEU (sacrebleu, 13a) of all held-out sentences, decoded greedily and by a beam of 5.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from learning import EXAMPLES, answers, arguments, by_seed, folder_of, minutes, paired, trained
from results import learnt, report
from sacrebleu.metrics import BLEU

from upslope.records import Rollout

DATA, BEAMS = "$UPSLOPE_DATA/data/multi30k_en_de/train.jsonl", 5
NAMES = ("supervised", "and policy gradient")


def made(folder: Path, *, seed: int) -> Path:
    """The model with random weights, by the example's own script."""
    if not folder.exists():
        command = [sys.executable, str(EXAMPLES / "translation" / "make_model.py"), os.path.expandvars(DATA)]
        subprocess.run([*command, str(folder), "--seed", str(seed)], check=True)
    return folder


def bleu_counts(rows: Sequence[Rollout]) -> np.ndarray:
    """What a corpus's BLEU is made of, [n, 10]: n-grams right and n-grams in all, length of output and of reference."""
    scores = [BLEU(effective_order=True).sentence_score(row.text, [row.prompt.columns["de"]]) for row in rows]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores], dtype=float)


def bleu(counts: np.ndarray) -> np.ndarray:
    """Corpus BLEU [m] in [0, 100] of summed counts [m, 10]."""
    return np.array(
        [
            BLEU.compute_bleu(row[:4].tolist(), row[4:8].tolist(), int(row[8]), int(row[9]), "exp").score
            for row in counts
        ]
    )


def main() -> None:
    options = arguments(__doc__, seeds=1).parse_args()
    folder, limit = folder_of(options), options.limit
    runs, greedy, beams = [], [], []
    for seed in range(options.seeds):
        how = {"seed": seed, "limit": limit}
        start = made(folder / f"model-{seed}", seed=seed)
        warm = trained("translation/1_supervised.toml", folder / f"warm-{seed}", **how, **{"model.name": str(start)})
        begin = {"model.name": str(warm.model_path)}
        run = trained("translation/2_policy_gradient.toml", folder / f"bleu-{seed}", **how, **begin)
        runs += [warm, run]
        greedy.append([bleu_counts(answers(each, limit=limit)) for each in (warm, run)])
        beams.append([bleu_counts(answers(each, limit=limit, beams=BEAMS)) for each in (warm, run)])
    cases, notes = [], [f"{sum(p.numel() for p in runs[0].load_model().parameters()):,} weights"]
    for name, counts, wanted in (("greedy", greedy, "gain above 0"), (f"beam of {BEAMS}", beams, "")):
        before, after = np.swapaxes(np.array(counts), 0, 1)
        cases.append(learnt(f"BLEU, {name}", *paired(before, after, bleu), names=NAMES, unit="BLEU", wanted=wanted))
        notes.append(f"By seed, {name}: {by_seed(before, after, bleu, digits=2)}")
    report("translation", cases, results=options.results, notes=[*notes, minutes(*runs)])


if __name__ == "__main__":
    main()
