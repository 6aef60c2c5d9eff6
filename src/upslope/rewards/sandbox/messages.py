"""What passes between the processes of a sandbox: JSON messages, and in them plain data that keeps Python's types.

Never pickles: what one side reads was written by code that nobody trusts. Imports the standard library only.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

_HEADER = struct.Struct(">I")
_LARGE = 1 << 64  # beyond it in hexadecimal, which Python reads in linear time and at any length
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class Channel:
    """JSON messages over a socket, each behind its length in bytes."""

    def __init__(self, connection: socket.socket, *, limit: int) -> None:
        self._socket, self._limit = connection, limit

    def send(self, message: Any, deadline: float | None = None) -> None:
        """Raises: OSError where the other side is gone; TimeoutError at the deadline, a time.monotonic()."""
        payload = json.dumps(message).encode()
        self._wait(deadline)
        self._socket.sendall(_HEADER.pack(len(payload)) + payload)

    def receive(self, deadline: float | None = None) -> Any:
        """The next message.

        Raises: EOFError where there is none; ValueError for one longer than the limit, or no JSON; TimeoutError at the
        deadline, a time.monotonic().
        """
        (size,) = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if size > self._limit:
            raise ValueError(f"{size} bytes are more than {self._limit}")
        return json.loads(self._read(size, deadline))

    def _read(self, size: int, deadline: float | None) -> bytes:
        received = bytearray()
        while len(received) < size:
            self._wait(deadline)
            try:
                piece = self._socket.recv(min(size - len(received), 1 << 16))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError("the other side is gone")
            received += piece
        return bytes(received)

    def _wait(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:  # noqa: PLR0911 - a kind of data each
    """Plain data as JSON. What is not plain becomes what `refer` gives for it, or raises there."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _LARGE else {"int": f"{value:x}"}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [encode(item, refer) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [encode(item, refer) for item in value]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return encode(value.tolist(), refer)
    return {"object": refer(value)}


def decode(data: Any, recall: Callable[[Any], Any]) -> Any:  # noqa: PLR0911 - a kind of data each
    """The value of what `encode` wrote; its objects are what `recall` gives for their references.

    Raises: ValueError, TypeError, ... for anything else, or RecursionError.
    """
    if isinstance(data, list):
        return [decode(item, recall) for item in data]
    if not isinstance(data, dict):
        return data
    ((name, inner),) = data.items()
    if name == "dict":
        return {decode(key, recall): decode(item, recall) for key, item in inner}
    if name in _SEQUENCES:
        return _SEQUENCES[name](decode(item, recall) for item in inner)
    if name == "int":
        return int(inner, 16)
    if name == "bytes":
        return bytes.fromhex(inner)
    if name == "complex":
        return complex(*inner)
    if name == "object":
        return recall(inner)
    raise ValueError(f"{name!r} is no kind of plain data")
