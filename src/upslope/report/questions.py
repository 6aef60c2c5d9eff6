"""What a person is asked about a run's samples: which of two is better, or how good one is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """One text that the model wrote, as samples.jsonl holds it.

    id: kind, step, group and number of the sample. weights: the checksum of the weights that wrote it, None in runs of
    earlier versions. cut: whether it was cut at the length limit.
    """

    id: str
    step: int
    weights: str | None
    text: str
    cut: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt (text, or a chat's messages) and one answer to be given stars, or two to be compared, the left first.

    id follows from prompt and texts alone, so the same question has it under any seed and in any run.
    """

    id: str
    prompt: str | list[dict[str, str]]
    answers: tuple[Answer, ...]


def questions(samples: Iterable[Mapping[str, Any]], *, stars: bool, seed: int) -> list[Question]:
    """The questions about a run's logged samples, in the order they are asked. Equal texts of a prompt count once.

    For comparisons the texts of each prompt stand in a ring, and each is compared with its two neighbours: every text
    is seen twice, and all of a prompt are connected. The ring, the order of all questions, and which side is left, are
    those of hashes with the seed: samples that come later leave the questions as they are, but for two neighbours that
    they part.
    """
    asked = []
    for prompt, answers in _by_prompt(samples):
        ring = sorted(answers, key=lambda answer: _digest(seed, prompt, answer.text))
        for group in [(answer,) for answer in answers] if stars else _neighbours(ring):
            id = _digest(prompt, *sorted(answer.text for answer in group))
            turned = _digest(seed, "left", id) < "8"  # the first hexadecimal digit: one question in two
            asked.append(Question(id, prompt, group[::-1] if turned else group))
    return sorted(asked, key=lambda question: _digest(seed, "order", question.id))


def _neighbours(ring: Sequence[Answer]) -> Iterator[tuple[Answer, Answer]]:
    last = len(ring) - 1 if len(ring) < 3 else len(ring)
    return ((ring[place], ring[(place + 1) % len(ring)]) for place in range(last))


def _by_prompt(samples: Iterable[Mapping[str, Any]]) -> list[tuple[Any, list[Answer]]]:
    """The distinct answers to each prompt; a line that lacks what every sample has is none."""
    found: dict[str, tuple[Any, dict[str, Answer]]] = {}
    for sample in samples:
        try:
            prompt, text = sample["prompt"], sample["text"]
            id = "/".join(str(sample[name]) for name in ("kind", "step", "group", "sample"))
            answer = Answer(id, sample["step"], sample.get("weights"), text, sample["stop_reason"] == "length")
            texts = [prompt] if isinstance(prompt, str) else [m[name] for m in prompt for name in ("role", "content")]
        except (KeyError, TypeError):
            continue
        if all(isinstance(each, str) for each in (*texts, text)):
            found.setdefault(json.dumps(prompt), (prompt, {}))[1].setdefault(text, answer)
    return [(prompt, list(answers.values())) for prompt, answers in found.values()]


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
