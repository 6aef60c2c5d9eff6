"""A classifier's policy-gradient step beside a supervised one: python benchmarks/classifier_step.py [--repeats 20].

minilm-l6 with three labels and the same 32 texts of 8 to 64 words on both sides, in float32, all weights trained by
AdamW. upslope samples four labels a text, scores them (right or wrong, in the worker process) and learns by rloo, or
asks for all three labels (expected). Transformers' Trainer takes a plain cross-entropy step on the texts' own labels,
padded to the longest, with the model's dropout as it comes. Policy gradient has a forward more to compute.
"""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import workloads
from harness import Side, arguments, measure
from results import compare, report
from step_grpo import EachStep

ROWS, SHORTEST, LONGEST = 32, 8, 64
LABELS = ("bad", "good", "none")
WAYS = {
    "rloo, 4 samples": {"algorithm": "rloo", "group_size": 4, "kl": "off"},
    "expected": {"algorithm": "reinforce", "expected": True},
}


def rows() -> list[dict[str, str]]:
    """Texts of so many words, with a label each."""
    words = itertools.cycle(" ".join(workloads.TOPICS).split())
    lengths = [SHORTEST + (LONGEST - SHORTEST) * place // (ROWS - 1) for place in range(ROWS)]
    return [
        {"prompt": " ".join(itertools.islice(words, length)), "label": LABELS[place % len(LABELS)]}
        for place, length in enumerate(lengths)
    ]


def upslope(turn: Any, *, model: str, algorithm: str, **settings: Any) -> None:
    """Steps of upslope.train."""
    from upslope import Task, train
    from upslope.rewards import exact_match

    texts = rows()
    turn()
    train(
        model=model,
        task=Task(prompts=texts, reward=exact_match("label"), labels=LABELS),
        algorithm=algorithm,
        run=f"{tempfile.mkdtemp()}/run",
        trackers=[EachStep(turn, sum(len(row["prompt"].split()) for row in texts))],
        kind="classifier",
        steps=10_000,
        prompts_per_step=ROWS,
        lr=1e-6,
        checkpoint_every_steps="none",
        **settings,
    )


def transformers(turn: Any, *, model: str) -> None:
    """Steps of Transformers' Trainer."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    texts, tokenizer = rows(), AutoTokenizer.from_pretrained(model)
    words = sum(len(row["prompt"].split()) for row in texts)

    class EachStepOfTrainer(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn(tokens=words)

    quiet = {k: v for k, v in workloads.TRL.items() if k != "gradient_checkpointing"}
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(LABELS)),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=ROWS,
            max_steps=10_000,
            learning_rate=1e-6,
            **quiet,
        ),
        train_dataset=[{**tokenizer(row["prompt"]), "label": LABELS.index(row["label"])} for row in texts],
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[EachStepOfTrainer()],
    )
    turn()
    trainer.train()


def main() -> None:
    options = arguments(__doc__, repeats=20).parse_args()
    from upslope.policies.embedded import fetch

    model = str(fetch("minilm-l6"))
    sides = [Side(f"upslope, {way}", __file__, "upslope", {"model": model, **how}) for way, how in WAYS.items()]
    peer = Side("Transformers' Trainer, supervised", __file__, "transformers", {"model": model})
    *own, supervised = measure([*sides, peer], repeats=options.repeats, warmups=3, peers=options.peers)
    cases = [compare(f"{ROWS} texts", side, supervised, unit="s/step") for side in own]
    report("classifier_step", cases, results=options.results)


if __name__ == "__main__":
    main()
