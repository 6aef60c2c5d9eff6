"""The trainer's end of the forker: confined processes on demand, each of them ended for certain."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from upslope.errors import RewardError
from upslope.rewards.sandbox.messages import Channel

_START_S = 20.0  # to start an interpreter or a process on a busy machine; not counted against a program
_VERDICT_BYTES = 1 << 20
_BOOT = (
    "import sys, json; sys.path.insert(0, sys.argv[1]); from upslope.rewards.sandbox.forker import main; "
    "del sys.path[0]; main(int(sys.argv[2]), json.loads(sys.argv[3]))"
)
_FLAGS = ("-s", "-S", "-P", "-B")  # no packages, none of the folder it starts in, no compiled files
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Process:
    """A confined process: what its trusted part says, and its end."""

    def __init__(self, channel: Channel, forker: Forker, pid: int) -> None:
        self.channel, self._forker, self._pid = channel, forker, pid
        self._status: int | None = None

    def end(self) -> int:
        """Kills it, unless it has ended; its exit status, or minus the signal that it died of."""
        if self._status is None:
            self._status = self._forker.ask({"end": self._pid})["status"]
        return self._status


class Forker:
    """The process that forks confined ones, proven on its start. From any thread.

    limits: of each process, by the names of `Limits`; packages: folders beside Python's own that it may import from.

    Raises: RewardError naming what this machine lacks, or what a confined process could still do.
    """

    def __init__(self, limits: Mapping[str, float], packages: Sequence[str]) -> None:
        self._limits, self._lock = dict(limits), Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(Path(__file__).parents[3]), str(theirs.fileno()), json.dumps(list(packages))]
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *_FLAGS, "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                pass_fds=[theirs.fileno()],
            )
        self._socket.settimeout(_START_S)
        self.stop = weakref.finalize(self, _stop, self._socket, process)
        self.alive: Callable[[], bool] = lambda: process.poll() is None
        try:
            with self.confined("proof") as proof:
                able = proof.channel.receive(time.monotonic() + _START_S)
        except BaseException:
            self.stop()
            raise
        if able is not None:
            self.stop()
            raise RewardError(f"the sandbox does not hold on this machine: a confined process can still {able}")

    @contextlib.contextmanager
    def confined(self, role: str, *descriptors: int) -> Iterator[Process]:
        """A confined process with these descriptors, ended on the way out.

        Raises: RewardError where it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                answer = self.ask({"role": role, "limits": self._limits}, [theirs.fileno(), *descriptors])
            if "pid" not in answer:
                raise RewardError(f"the sandbox cannot start a process: {answer['refused']}")
            process = Process(Channel(ours, limit=_VERDICT_BYTES), self, answer["pid"])
            try:
                word = process.channel.receive(time.monotonic() + _START_S)
                if word != "ready":
                    raise RewardError(f"the sandbox cannot confine a process: {word}")
                yield process
            finally:
                process.end()

    def ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """The forker's answer. Raises: RewardError where it is gone."""
        with self._lock:
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
                answer = self._socket.recv(1 << 16)
            except OSError:
                answer = b""
            if not answer:
                self.stop()
                raise RewardError("the sandbox's own process is gone; the machine may be out of memory")
        return dict(json.loads(answer))


def _stop(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Without its socket the forker ends, and each process that it forked with it."""
    connection.close()
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()
