"""A supervised start and then policy gradient: every kind of policy learns by the same two loops."""

from __future__ import annotations

import pytest
import torch

import upslope
from upslope.rewards import exact_match

LETTERS, DIGITS = "abcdefgh", "12345678"
QUICK = {
    "max_new_tokens": 3,
    "isolation": "none",
    "trackers": [],
    "warmup_steps": 0,
    "checkpoint_every_steps": "none",
    "completion": "answer",
}


def classes():
    """A letter is "letter", a digit "digit"."""
    return [{"prompt": c, "answer": "digit" if c in DIGITS else "letter"} for c in LETTERS + DIGITS]


def tags():
    """A digit begins a number, and digits after it go on with it."""
    texts = ["a 1 2", "b c", "3 d 4", "5 6 e", "f 7", "g h 8", "1 b", "c 2 3"]
    rows = []
    for text in texts:
        found, before = [], "O"
        for word in text.split():
            before = "O" if word in LETTERS else ("I-N" if before != "O" else "B-N")
            found.append(before)
        rows.append({"prompt": text, "answer": found})
    return rows


def words():
    """The decoder writes the letter's place in the alphabet."""
    return [{"prompt": letter, "answer": digit} for letter, digit in zip(LETTERS, DIGITS, strict=True)]


def share_right(completion, answer):
    """Share of the words with the right tag."""
    return sum(a == b for a, b in zip(completion.split(), answer, strict=True)) / len(answer)


CASES = {
    "classifier": ("tiny-bert", classes, ("letter", "digit"), 3, 12),
    "tagger": ("tiny-bert", tags, ("O", "B-N", "I-N"), 2, 30),
    "seq2seq": ("tiny-t5", words, (), 5, 40),
}


def task_of(make, labels):
    prompts = make()
    reward = share_right if isinstance(prompts[0]["answer"], list) else exact_match("answer")
    return upslope.Task(prompts=prompts, reward=reward, eval_prompts=prompts, labels=labels)


@pytest.mark.parametrize("kind", CASES)
def test_a_warm_start_and_then_policy_gradient_solve_the_task(kind, tmp_path):
    """The warm start is too short to solve it; policy gradient from its folder does, and the folder is the model."""
    model, make, labels, warm, steps = CASES[kind]
    task = task_of(make, labels)
    given = {**QUICK, "kind": kind, "task": task, "prompts_per_step": 8, "every_steps": 1000}
    first = upslope.train(
        model=model, run=tmp_path / "warm", method="supervised", steps=warm, lr=3e-3, dropout=False, **given
    )
    start = upslope.evaluate(first, task).interval.estimate
    assert 0.2 < start < 0.95
    second = upslope.train(
        model=first.model_path, run=tmp_path / "run", algorithm="rloo", group_size=8, steps=steps, lr=3e-3,
        kl="off", kl_coef=0.0, **given,
    )  # fmt: skip
    end = upslope.evaluate(second, task).interval.estimate
    assert end >= 0.95
    before, after = first.load_model().state_dict(), second.load_model().state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
