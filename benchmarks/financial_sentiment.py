"""Bandit reward beside full supervision: python benchmarks/financial_sentiment.py [--seeds 5].

financial_phrasebank with minilm-l6, the same messages in the same order and the same number of steps for both: once
with their labels, by cross-entropy, and once by policy gradient on right or wrong for a few sampled answers each, never
a label. Both are examples/recipes/financial_sentiment.toml; the first with method = "supervised". Macro F1 on all
held-out messages, by the most likely label.
"""

from __future__ import annotations

import numpy as np
from learning import answers, arguments, by_seed, folder_of, macro_f1, minutes, paired, trained
from results import learnt, report

from upslope.evaluation.labels import decision_counts

RECIPE, LABELS = "recipes/financial_sentiment.toml", ("negative", "neutral", "positive")
SUPERVISED = {"method": "supervised", "supervised.completion": "label"}


def main() -> None:
    options = arguments(__doc__, seeds=5).parse_args()
    folder, limit = folder_of(options), options.limit
    runs, counts = [], []
    for seed in range(options.seeds):
        how = {"seed": seed, "limit": limit}
        both = [
            trained(RECIPE, folder / f"supervised-{seed}", **how, **SUPERVISED),
            trained(RECIPE, folder / f"bandit-{seed}", **how),
        ]
        runs += both
        found = [answers(run, limit=limit) for run in both]
        counts.append([decision_counts(rows, labels=LABELS, column="label") for rows in found])
    before, after = np.swapaxes(np.array(counts), 0, 1)
    case = learnt(
        f"macro F1, mean of {options.seeds} seeds",
        *paired(before, after, macro_f1),
        names=("supervised", "bandit reward"),
        unit="F1",
        wanted="difference >= -0.01",
    )
    notes = [f"Macro F1 by seed, supervised -> bandit: {by_seed(before, after, macro_f1)}", minutes(*runs)]
    report("financial_sentiment", [case], results=options.results, notes=notes)


if __name__ == "__main__":
    main()
