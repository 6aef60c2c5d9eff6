"""An OpenAI-compatible chat endpoint, asked patiently: retries with growing pauses, a rate, and answers kept on disk.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import os
import random
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar

from upslope.errors import RewardError

Read = TypeVar("Read")

_AGAIN = {408, 409, 425, 429}  # and 500 and above: what may be different the next time
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_LARGEST_ANSWER = 4 << 20  # bytes


class NonsenseError(RewardError):
    """An endpoint answered, but never anything that can be read, however often it was asked."""


class UnreachableError(RewardError):
    """An endpoint did not answer, however often it was asked."""


class Pace:
    """At most so many requests a minute, evenly spaced, over all threads; any number where it is None."""

    def __init__(self, per_minute: float | None) -> None:
        self._space_s = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, Lock()

    def turn_s(self) -> float:
        """Seconds until the turn of whoever asks now."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._space_s
            return turn - now


class Answers:
    """Answers by the SHA-256 of their request, in an SQLite file that several processes may share.

    Raises: RewardError where the file is none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._do("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise RewardError(
                f"the judge's cache {path} cannot be used ({error}); delete it or name another"
            ) from error

    def get(self, request: str) -> str | None:
        """The answer to a request, None where it was never asked."""
        found = self._do("SELECT answer FROM answers WHERE request = ?", request)
        return str(found[0][0]) if found else None

    def put(self, request: str, answer: str) -> None:
        """Keeps an answer, in the place of one that was there."""
        self._do("INSERT OR REPLACE INTO answers VALUES (?, ?)", request, answer)

    def _do(self, statement: str, *values: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()


class Endpoint:
    """Chat completions of one model: `ask` sends messages and reads the answer.

    base_url: up to and without `/chat/completions`. api_key: the name of the environment variable that holds the key;
    without one no key is sent. options: further fields of the request. timeout_s [seconds]: of one attempt. retries:
    after an attempt that failed; their pauses double from half a second, or are what `Retry-After` says.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str,
        options: Mapping[str, Any],
        timeout_s: float,
        retries: int,
        per_minute: float | None,
        cache: str | None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise RewardError(f"the judge's base_url is {base_url!r}; it must begin with http:// or https://")
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._fixed = {"model": model, **options}
        self._api_key, self._timeout_s, self._retries = api_key, timeout_s, retries
        self._pace = Pace(per_minute)
        self._answers = Answers(cache) if cache else None

    def ask(self, messages: list[dict[str, str]], read: Callable[[str], Read], stopped: Event) -> Read:
        """read(answer), asking again where there is no answer or read raises ValueError; until `stopped` is set.

        Raises: NonsenseError, UnreachableError, by the last attempt; RewardError where asking again is useless.
        """
        body = json.dumps({**self._fixed, "messages": messages}, sort_keys=True)
        request = hashlib.sha256(f"{self._url}\n{body}".encode()).hexdigest()
        if self._answers and (known := self._answers.get(request)) is not None:
            with contextlib.suppress(ValueError):  # it was read another way then
                return read(known)
        pause_s, error = self._pace.turn_s(), RewardError("never asked")
        for attempt in range(self._retries + 1):
            if stopped.wait(pause_s):
                raise UnreachableError("there was no time left to ask again")
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                answer = self._sent(body.encode())
                value = read(answer)
            except urllib.error.HTTPError as refusal:
                if refusal.code not in _AGAIN and refusal.code < 500:
                    raise RewardError(f"{self._url} refuses the request: {_told(refusal)}") from None
                pause_s = max(pause_s, _retry_after_s(refusal))
                error = UnreachableError(f"{self._url} answers {_told(refusal)}")
            except (OSError, http.client.HTTPException) as failure:
                error = UnreachableError(f"{self._url} does not answer: {failure}")
            except ValueError as failure:
                error = NonsenseError(f"{self._url} answers nonsense: {failure}")
            else:
                if self._answers:
                    self._answers.put(request, answer)
                return value
            pause_s = max(pause_s, self._pace.turn_s())
        raise error

    def _sent(self, body: bytes) -> str:
        """The text of the answer. Raises: OSError, HTTPException; ValueError where it is no chat completion."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._api_key):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, data=body, headers=headers)
        with urllib.request.build_opener(_Stay).open(request, timeout=self._timeout_s) as response:
            data = response.read(_LARGEST_ANSWER)
        try:
            text = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise ValueError(f"no chat completion: {data[:200]!r}") from None
        if not isinstance(text, str):
            raise ValueError(f"a chat completion without a text: {data[:200]!r}")
        return text


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would send the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirection is an error."""


def _told(refusal: urllib.error.HTTPError) -> str:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return f"{refusal.code} {refusal.reason}: {refusal.read(300).decode(errors='replace')}"
    return f"{refusal.code} {refusal.reason}"


def _retry_after_s(refusal: urllib.error.HTTPError) -> float:
    """Seconds of the header `Retry-After`, which gives them or a date; 0 without it."""
    told = refusal.headers.get("Retry-After", "")
    with contextlib.suppress(ValueError):
        return min(_LONGEST_PAUSE_S, max(0.0, float(told)))
    with contextlib.suppress(ValueError, TypeError):
        until = email.utils.parsedate_to_datetime(told).timestamp()
        return min(_LONGEST_PAUSE_S, max(0.0, until - time.time()))
    return 0.0
