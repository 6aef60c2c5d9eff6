"""Text to tokens: prompts and completions as a causal model reads and writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import DataError, ModelError
from upslope.records import Message, Prompt

_LONGEST_CHARACTER = 4  # bytes, in UTF-8


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Prompt:
    """The prompt with its tokens: a chat through the model's template, plain text as the tokenizer gives it.

    Raises: DataError for a chat without a chat template or that the template refuses, or a prompt without tokens.
    """
    plain = isinstance(prompt.content, str)
    ids = tokenizer(prompt.content)["input_ids"] if plain else _encode_chat(tokenizer, prompt)
    if not ids:
        raise DataError(f"{prompt.name} has no tokens; a causal model needs at least one to start from")
    return dataclasses.replace(prompt, tokens=tuple(int(i) for i in ids))


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Any) -> tuple[int, ...]:
    """Tokens of a prompt's completion as the model would write it: no leading special tokens, one end of row.

    Raises: DataError when it is no text, ModelError when the tokenizer has no end of sequence.
    """
    if not isinstance(completion, str) or not completion:
        raise DataError(f"the completion of {prompt.name} is {completion!r}, which is no text to learn from")
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token, so no completion can be ended")
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return (*(int(i) for i in ids), int(tokenizer.eos_token_id))


def check_known(what: str, ids: Sequence[int], vocabulary: int) -> None:
    """Every id must have a place among the model's `vocabulary` embeddings.

    Raises: ModelError naming what holds an id beyond them, as where tokenizer and model do not belong together.
    """
    if (highest := max(ids, default=0)) >= vocabulary:
        raise ModelError(
            f"{what} holds token {highest}, but the model knows {vocabulary} tokens only; give it the tokenizer it was "
            "made with, or make its embeddings as many as the tokenizer's tokens"
        )


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token, special ones included; joined, they are the text of all.

    A token that ends within a character has no text: the one that completes the character has all of it.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]  # a first token may lose its leading space
    skipped = len(tokenizer.decode(anchor, clean_up_tokenization_spaces=False))
    texts: list[str] = []
    pending: list[int] = []
    for place, token in enumerate(ids, 1):
        pending.append(int(token))
        text = tokenizer.decode([*anchor, *pending], clean_up_tokenization_spaces=False)[skipped:]
        whole = not text.endswith("\ufffd") or len(pending) == _LONGEST_CHARACTER or place == len(ids)
        texts.append(text if whole else "")
        if whole:
            pending = []
    return texts


def _encode_chat(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Sequence[int]:
    if tokenizer.chat_template is None:
        raise DataError(f"{prompt.name} is a chat but the model has no chat template; give plain text instead")
    messages = [dict(message) for message in cast(Sequence[Message], prompt.content)]
    try:
        ids: Sequence[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # a template is a (sandboxed) program of the model's author
        raise DataError(f"{prompt.name} is refused by the model's chat template: {error}") from error
    return ids


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a row: the generation config's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, (list, tuple)) else [configured])
    return frozenset(int(i) for i in ids | {tokenizer.eos_token_id} if i is not None)
