"""The process in which reward functions run: reads requests from a socket, answers one JSON frame a call.

Requests are pickles of the trusted parent; answers are JSON, so that the parent never unpickles what untrusted
code wrote. Standard output is not part of the protocol. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from upslope.rewards.calling import run_calls

_HEADER = struct.Struct(">Q")


def send_frame(connection: socket.socket, payload: bytes) -> None:
    """One length-prefixed message."""
    connection.sendall(_HEADER.pack(len(payload)) + payload)


def receive_frame(connection: socket.socket) -> bytes | None:
    """The next message, or None at the end of the stream."""
    header = _receive(connection, _HEADER.size)
    return None if header is None else _receive(connection, _HEADER.unpack(header)[0])


def _receive(connection: socket.socket, size: int) -> bytes | None:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(min(size - len(received), 1 << 20))
        if not piece:
            return None
        received += piece
    return bytes(received)


def main(descriptor: int, parent: int) -> None:
    """Serves the socket with the given file descriptor until it closes or the parent process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    connection = socket.socket(fileno=descriptor)
    functions: list[Any] = []
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while (frame := receive_frame(connection)) is not None:
            request = pickle.loads(frame)
            if "functions" in request:
                functions = _load(connection, request)
            else:
                _serve(connection, functions[request["term"]], request)


def _load(connection: socket.socket, request: dict[str, Any]) -> list[Any]:
    """The reward functions, rebuilt; what goes wrong is told by name, since it is the user's to mend."""
    functions = []
    for name, blob in request["functions"]:
        try:
            functions.append(pickle.loads(blob))
        except BaseException as error:
            _answer(connection, {"broken": name, "cause": f"{type(error).__name__}: {error}"})
            return []
    _limit_memory(request["memory_bytes"])
    _answer(connection, {"ready": True})
    return functions


def _serve(connection: socket.socket, function: Any, request: dict[str, Any]) -> None:
    process = os.getpid()
    for index, outcomes in run_calls(function, request["calls"], timeout_s=request["timeout_s"]):
        if os.getpid() != process:  # a fork made by the function came back through it
            os._exit(0)
        _answer(connection, {"call": index, "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes]})


def _answer(connection: socket.socket, answer: dict[str, Any]) -> None:
    send_frame(connection, json.dumps(answer).encode())


def _limit_memory(extra_bytes: int | None) -> None:
    """Caps private memory (RLIMIT_DATA: what is written, not what is mapped) at what is used now plus extra_bytes."""
    status = Path("/proc/self/status")
    if extra_bytes is None or not status.exists():
        return
    import resource  # not on Windows

    used = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + extra_bytes, used + extra_bytes))


def _follow(parent: int) -> None:
    """Ends this process and what it started once the trainer is gone, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)
