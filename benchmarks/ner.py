"""What policy gradient on span F1 adds to a supervised tagger: python benchmarks/ner.py [--seeds 1].

conll2003_ner_en with minilm-l6, whose tokenizer is made to mark capitals (model.mark_case). 10,000 training sentences
keep their tags and train a tagger (examples/recipes/ner_warm.toml); from there, policy gradient on the span F1 of the
sampled tags of the sentences that are left (examples/recipes/ner.toml). On all held-out sentences: macro and micro F1
of tokens, O counted as a class, which makes micro F1 the accuracy; and F1 of whole entities as seqeval counts them.
"""

from __future__ import annotations

import numpy as np
from learning import answers, arguments, by_seed, folder_of, macro_f1, micro_f1, minutes, paired, trained
from results import learnt, report

from upslope.evaluation.labels import decision_counts, span_counts
from upslope.tasks.labelled import labelled

DATA = "$UPSLOPE_DATA/data/conll2003_ner_en/train.jsonl"
NAMES = ("10,000 labelled sentences", "and policy gradient")


def main() -> None:
    options = arguments(__doc__, seeds=1).parse_args()
    folder, limit = folder_of(options), options.limit
    labels = labelled(DATA, text="tokens", label="tags").labels
    runs, tokens, entities = [], [], []
    for seed in range(options.seeds):
        draw = {"task.options.seed": seed}
        warm = trained("recipes/ner_warm.toml", folder / f"warm-{seed}", seed=seed, limit=limit, **draw)
        draw["model.name"] = str(warm.model_path)
        run = trained("recipes/ner.toml", folder / f"ner-{seed}", seed=seed, limit=limit, **draw)
        runs += [warm, run]
        found = [answers(each, limit=limit) for each in (warm, run)]
        tokens.append([decision_counts(rows, labels=labels, column="tags") for rows in found])
        entities.append([span_counts(rows, column="tags")[0].sum(1, keepdims=True) for rows in found])
    cases, notes = [], []
    for name, counts, statistic, wanted in (
        ("token macro F1, O counted", tokens, macro_f1, ">= 0.909"),
        ("token micro F1, O counted", tokens, micro_f1, ">= 0.973"),
        ("entity F1 (seqeval)", entities, micro_f1, "gain above 0"),
    ):
        before, after = np.swapaxes(np.array(counts), 0, 1)
        cases.append(learnt(name, *paired(before, after, statistic), names=NAMES, unit="F1", wanted=wanted))
        notes.append(f"By seed, {name}: {by_seed(before, after, statistic)}")
    report("ner", cases, results=options.results, notes=[*notes, minutes(*runs)])


if __name__ == "__main__":
    main()
