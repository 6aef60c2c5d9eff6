"""Tasks of choosing labels: texts with a label each, and sentences with a tag a word, from data files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

from upslope.errors import DataError, RecipeError
from upslope.records import Prompt
from upslope.rewards.rules import exact_match
from upslope.rewards.spans import span_f1
from upslope.tasks.noise import flip_labels, misspell, swap_words
from upslope.tasks.prompts import EVAL_IDS, UnusableError
from upslope.tasks.readers import read_prompts
from upslope.tasks.task import Reward, Task

Part = Literal["all", "labelled", "unlabelled"]


def labelled(
    path: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    reward: Reward | Sequence[Reward] | None = None,
    metric: Reward | None = None,
    labels: Sequence[str] | None = None,
    eval: str | Path | None = None,
    split: str = "train",
    eval_split: str = "test",
    limit: int | None = None,
    num_eval: int | None = None,
    strict: bool = True,
    num_labelled: int | None = None,
    part: Part = "all",
    label_noise: float = 0.0,
    text_noise: float = 0.0,
    word_noise: float = 0.0,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """A task of choosing labels: the column `text` of a file holds texts with one label each in `label`, or lists of
    words with as many tags.

    The reward and the metric are 1 for the right label and 0 for another, or a sentence's span F1 where words are
    tagged, unless others are given. labels are the answers there are, by default those in the file.

    num_labelled: so many prompts, drawn by the seed with each label as frequent as in the file, are the part
    "labelled", for supervised training; the rest is the part "unlabelled", of which a policy sees no label but the
    reward's answer. label_noise flips that share of the training labels, text_noise misspells that share of the
    training words, word_noise exchanges that share of neighbouring ones; held-out prompts stay clean. `eval`, split,
    limit, num_eval and strict are as in `from_file`.

    Raises: DataError naming file and line for a row without a label, with an unknown one, or with another number of
    labels than words; RecipeError for options that contradict each other.
    """
    how: dict[str, Any] = {"prompt": text, "strict": strict, "check": _checked(label, labels)}
    prompts, skipped = read_prompts(path, split=split, limit=limit, **how)
    known = tuple(labels) if labels is not None else _labels(prompts, label)
    held_out: list[Prompt] = []
    lost: dict[str, int] = {}
    if eval is not None:
        how["check"] = _checked(label, known)
        held_out, lost = read_prompts(eval, split=eval_split, limit=num_eval, first_id=EVAL_IDS, **how)
    chosen = _part(prompts, label, count=num_labelled, part=part, seed=seed)
    noisy = flip_labels(chosen, column=label, labels=known, rate=label_noise, seed=seed)
    noisy = swap_words(noisy, column=label, rate=word_noise, seed=seed)
    right = span_f1(label) if isinstance(prompts[0].columns[label], list) else exact_match(label)
    return Task(
        prompts=misspell(noisy, rate=text_noise, seed=seed),
        reward=reward or right,
        metric=metric or right,
        eval_prompts=held_out,
        name=name or Path(path).stem,
        labels=known,
        label_column=label,
        skipped=Counter(skipped) + Counter(lost),
        strict=strict,
    )


def _checked(column: str, labels: Sequence[str] | None) -> Callable[[Prompt], None]:
    """A check that a prompt has labels in the column: one, or one a word; and none that is unknown."""
    known = None if labels is None else frozenset(labels)

    def check(prompt: Prompt) -> None:
        value, words = prompt.columns.get(column), prompt.columns.get("words")
        found = value if isinstance(value, list) else [value]
        if not found or not all(isinstance(label, str) and label for label in found):
            raise UnusableError(f"no {column!r}")
        if isinstance(value, list) != (words is not None) or (words is not None and len(found) != len(words)):
            raise UnusableError(f"another number of {column!r} than of words")
        if known is not None and not known.issuperset(found):
            raise UnusableError(f"an unknown label in {column!r}")

    return check


def _labels(prompts: Sequence[Prompt], column: str) -> tuple[str, ...]:
    """Every label there is, "O" first, then by name."""
    found: set[str] = set()
    for prompt in prompts:
        value = prompt.columns[column]
        found.update([value] if isinstance(value, str) else value)
    return tuple(sorted(found, key=lambda label: (label != "O", label)))


def _part(prompts: list[Prompt], column: str, *, count: int | None, part: Part, seed: int) -> list[Prompt]:
    if part not in ("all", "labelled", "unlabelled"):
        raise RecipeError(f"part is {part!r}; it must be 'all', 'labelled' or 'unlabelled'")
    if count is None:
        if part != "all":
            raise RecipeError(f"part is {part!r}, which needs num_labelled, the number of labelled prompts")
        return prompts
    if not 0 < count < len(prompts):
        raise DataError(f"num_labelled is {count}, but must lie between 0 and the {len(prompts)} prompts there are")
    ids = _stratified(prompts, column, count, seed)
    return [prompt for prompt in prompts if part == "all" or (prompt.id in ids) == (part == "labelled")]


def _stratified(prompts: Sequence[Prompt], column: str, count: int, seed: int) -> frozenset[int]:
    """Ids of so many prompts, each label's share as in the whole (a list of tags counts as one label).

    Prompts in random order are sorted by label; every (n / count)-th is taken.
    """
    order = list(prompts)
    Random(f"{seed}/labelled").shuffle(order)
    order.sort(key=lambda prompt: str(prompt.columns[column]) if isinstance(prompt.columns[column], str) else "")
    return frozenset(order[index * len(order) // count].id for index in range(count))
