"""From a data record, a string or a chat to a Prompt."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from upslope.errors import DataError
from upslope.records import Message, Prompt

EVAL_IDS = 1_000_000_000
"""Ids of held-out prompts start here, so that none shares its random numbers with a training prompt."""

_LOG = logging.getLogger(__name__)


class UnusableError(ValueError):
    """Why a record gives no prompt, in a few words without the row's own content, so that reasons can be counted."""


def as_prompts(
    items: Iterable[Any], *, first_id: int = 0, chat: bool = False, system: str | None = None
) -> list[Prompt]:
    """Prompts from prompts, strings, chats (lists of role and content) or records with a `prompt` column.

    Ids count from first_id by place; a Prompt keeps its own.

    Raises: DataError naming the item that cannot be a prompt.
    """
    prompts = []
    for index, item in enumerate(items):
        record = item if isinstance(item, Mapping) else {"prompt": item}
        try:
            prompts.append(
                item
                if isinstance(item, Prompt)
                else make_prompt(record, first_id + index, column="prompt", completion=None, chat=chat, system=system)
            )
        except UnusableError as problem:
            raise DataError(f"prompt {index} has {problem}; give a string or a list of role and content") from None
    return prompts


def usable(
    prompts: Iterable[Prompt], check: Callable[[Prompt], Any], *, strict: bool
) -> tuple[list[Prompt], Counter[str]]:
    """The prompts that pass a check (a policy's, say), and how many do not, by reason.

    Raises: the check's own DataError where strict.
    """
    passed: list[Prompt] = []
    lost: Counter[str] = Counter()
    for prompt in prompts:
        try:
            check(prompt)
            passed.append(prompt)
        except DataError as error:
            if strict:
                raise
            if not lost:
                _LOG.warning("%s; such prompts are skipped and counted", error)
            lost["what the model cannot read or write"] += 1
    return passed, lost


def make_prompt(
    record: Mapping[str, Any],
    id: int,
    *,
    column: str,
    completion: str | None,
    chat: bool,
    system: str | None,
    origin: str = "",
) -> Prompt:
    """One record as a Prompt; what is not the prompt becomes its columns.

    The column holds text, a chat, or a list of words, which stay as the column "words" beside their text; without it,
    `messages` is used, whose last assistant message then is the completion (for supervised training,
    `columns["completion"]`). completion names the column that holds it.
    """
    columns = dict(record)
    if column in columns:
        content = columns.pop(column)
    elif "messages" in columns:
        content = columns.pop("messages")
        content, columns = _split_messages(content, columns)
    else:
        raise UnusableError(f"no {column!r}")
    if isinstance(content, list | tuple) and content and all(isinstance(word, str) for word in content):
        columns["words"], content = list(content), " ".join(content)
    _take_completion(columns, completion)
    content = _content(content, column, chat=chat, system=system)
    return Prompt(id=id, content=content, columns=columns, origin=origin)


def _content(content: Any, column: str, *, chat: bool, system: str | None) -> str | tuple[Message, ...]:
    if isinstance(content, str):
        _check_text(content, column)
        if not chat and system is None:
            return content
        content = [{"role": "user", "content": content}]
    messages = _messages(content, column)
    if system is not None and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return messages


def _messages(content: Any, column: str) -> tuple[Message, ...]:
    if content is None:
        raise UnusableError(f"an empty {column!r}")
    if not isinstance(content, Sequence):
        raise UnusableError(f"a {column!r} of type {type(content).__name__}")
    if not content:
        raise UnusableError(f"an empty {column!r}")
    for message in content:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UnusableError(f"a message in {column!r} without a text role and content")
        _check_unicode(message["content"], column)
    if not any(message["content"].strip() for message in content):
        raise UnusableError(f"an empty {column!r}")
    return tuple({"role": message["role"], "content": message["content"]} for message in content)


def _split_messages(content: Any, columns: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    messages = _messages(content, "messages")
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        return messages[:-1], {**columns, "completion": messages[-1]["content"]}
    return messages, columns


def _take_completion(columns: dict[str, Any], name: str | None) -> None:
    """Puts the completion, text or a chat of one assistant message, into columns["completion"] as text."""
    if name is not None and name not in columns:
        raise UnusableError(f"no {name!r}")
    key = name or "completion"
    if key not in columns:
        return
    columns["completion"] = completion_text(columns.pop(key), key)


def completion_text(value: Any, column: str) -> str:
    """The text of a completion that a column holds: text, or a chat of one message.

    Raises: UnusableError for anything else, and for an empty one.
    """
    if isinstance(value, list | tuple):
        messages = _messages(value, column)
        if len(messages) != 1:
            raise UnusableError(f"a {column!r} of several messages")
        value = messages[0]["content"]
    if not isinstance(value, str):
        raise UnusableError(f"a {column!r} of type {type(value).__name__}")
    _check_text(value, column)
    return value


def _check_text(text: str, column: str) -> None:
    if not text.strip():
        raise UnusableError(f"an empty {column!r}")
    _check_unicode(text, column)


def _check_unicode(text: str, column: str) -> None:
    if "\0" in text:
        raise UnusableError(f"a NUL character in {column!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnusableError(f"half a surrogate pair in {column!r}") from None
