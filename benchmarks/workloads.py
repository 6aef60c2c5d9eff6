"""What both sides of a comparison work on: the model without end-of-sequence ids, prompts, rewards.

Imported in the peers' environments too, so that both sides read the same; the standard library and torch only.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
TOPICS = (
    *("the sea", "a mountain", "cooking rice", "old trains"),
    *("winter birds", "a broken clock", "city gardens", "night markets"),
)
Chat = list[dict[str, str]]

TRL = {  # what a trainer of TRL's does beside training: nothing
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
}


def short_prompts() -> list[Chat]:
    """Eight chats of about 60 tokens."""
    ask = "Write two sentences about {}, using as many vowels as you can. Please keep the tone calm, and mention one "
    return [_chat(ask.format(topic) + "colour and one number.") for topic in TOPICS]


def long_prompts(tokenizer: Any, *, tokens: int) -> list[Chat]:
    """Eight chats of exactly so many tokens, template included: notes to be summed up."""
    return [_filled(tokenizer, topic, tokens) for topic in TOPICS]


def _filled(tokenizer: Any, topic: str, tokens: int) -> Chat:
    """The chat about a topic, lengthened by words, at the end by characters, to so many tokens."""
    note = f"the day was long and {topic} stayed in our minds while we walked home through the rain".split()
    text, words = f"Sum up these notes about {topic}:", itertools.cycle(note)
    while (length := _length(tokenizer, text)) < tokens:
        longer = (text + piece for piece in (f" {next(words)}", " a", "."))
        text = next(candidate for candidate in longer if length < _length(tokenizer, candidate) <= tokens)
    return _chat(text)


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer.apply_chat_template(_chat(text), add_generation_prompt=True, return_dict=False))


def _chat(text: str) -> Chat:
    return [{"role": "user", "content": text}]


def vowels(completion: str) -> float:
    """The share of a completion's characters that are vowels."""
    return sum(character in "aeiou" for character in completion.lower()) / max(1, len(completion))


def folder() -> str:
    """The model as a Transformers folder; the benchmark's parent process names it in the options of the peers."""
    from upslope.policies.embedded import fetch

    return str(fetch(MODEL))


def endless(source: str) -> str:
    """A folder of the same weights that declares no end of sequence: every row then runs to its full length.

    Transformers' side gets the same lengths by min_new_tokens.
    """
    target = Path(tempfile.mkdtemp(prefix="endless-"))
    for file in Path(source).iterdir():
        if file.suffix == ".json" and "config" in file.name:
            values = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("eos_token_id", "eos_token")}
            (target / file.name).write_text(json.dumps(values))
        else:
            (target / file.name).symlink_to(file)
    return str(target)
