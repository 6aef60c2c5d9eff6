"""Noise put into data on purpose: wrong labels and misspelt texts, each decided by a seed and the prompt's id."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random

from upslope.errors import RecipeError
from upslope.records import Prompt


def flip_labels(
    prompts: Sequence[Prompt], *, column: str, labels: Sequence[str], rate: float, seed: int
) -> list[Prompt]:
    """The prompts with a share `rate` of their labels replaced by another, each of the others equally likely.

    A column may hold one label or a list of them, each of which is flipped on its own; an I-X that then follows no X
    becomes a B-X, as BIO tags have it.
    Raises: RecipeError for a rate outside 0 to 1, or where there is no other label.
    """
    _check_rate("label_noise", rate)
    if rate and len(labels) < 2:
        raise RecipeError(f"label_noise needs two labels at least, but there are {len(labels)}")

    def flipped(label: str, random: Random) -> str:
        return random.choice([other for other in labels if other != label]) if random.random() < rate else label

    def noisy(prompt: Prompt) -> Prompt:
        random, value = Random(f"{seed}/label/{prompt.id}"), prompt.columns[column]
        new = flipped(value, random) if isinstance(value, str) else _begun([flipped(tag, random) for tag in value])
        return dataclasses.replace(prompt, columns={**prompt.columns, column: new})

    return [noisy(prompt) for prompt in prompts] if rate else list(prompts)


def misspell(prompts: Sequence[Prompt], *, rate: float, seed: int) -> list[Prompt]:
    """The prompts with a share `rate` of the words of their plain text misspelt, by two neighbouring letters swapped.

    Words keep their number and place, and those of one letter stay. Raises: RecipeError for a rate outside 0 to 1.
    """
    _check_rate("text_noise", rate)

    def noisy(prompt: Prompt) -> Prompt:
        if not isinstance(prompt.content, str):
            return prompt
        random, words = Random(f"{seed}/text/{prompt.id}"), prompt.columns.get("words")
        new = [_swapped(w, random) if random.random() < rate else w for w in words or prompt.content.split(" ")]
        columns = {**prompt.columns, "words": new} if words else prompt.columns
        return dataclasses.replace(prompt, content=" ".join(new), columns=columns)

    return [noisy(prompt) for prompt in prompts] if rate else list(prompts)


def swap_words(prompts: Sequence[Prompt], *, column: str, rate: float, seed: int) -> list[Prompt]:
    """The prompts with neighbouring words of their plain text exchanged, with probability `rate` from left to right.

    A word changes place once at most. Tags move with their words; an I-X that then follows no X becomes a B-X.

    Raises: RecipeError for a rate outside 0 to 1.
    """
    _check_rate("word_noise", rate)

    def noisy(prompt: Prompt) -> Prompt:
        if not isinstance(prompt.content, str):
            return prompt
        words = prompt.columns.get("words")
        order = _exchanged(len(words or prompt.content.split(" ")), rate, Random(f"{seed}/words/{prompt.id}"))
        new = [(words or prompt.content.split(" "))[place] for place in order]
        columns = dict(prompt.columns)
        if words:
            columns |= {"words": new, column: _begun([columns[column][place] for place in order])}
        return dataclasses.replace(prompt, content=" ".join(new), columns=columns)

    return [noisy(prompt) for prompt in prompts] if rate else list(prompts)


def _exchanged(count: int, rate: float, random: Random) -> list[int]:
    """Places 0 ... count - 1, some neighbours exchanged."""
    order, place = list(range(count)), 0
    while place + 1 < count:
        if random.random() < rate:
            order[place : place + 2] = reversed(order[place : place + 2])
            place += 1
        place += 1
    return order


def _begun(tags: Sequence[str]) -> list[str]:
    """BIO tags whose every entity begins with a B-."""
    begun: list[str] = []
    for tag in tags:
        goes_on = bool(begun) and begun[-1][:2] in ("B-", "I-") and begun[-1][2:] == tag[2:]
        begun.append("B-" + tag[2:] if tag.startswith("I-") and not goes_on else tag)
    return begun


def _swapped(word: str, random: Random) -> str:
    if len(word) < 2:
        return word
    at = random.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise RecipeError(f"{name} is {rate}, but a share lies between 0 and 1")
