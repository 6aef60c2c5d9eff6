"""A process that forks confined ones: in milliseconds, from a memory in which no test or program ever was.

Imports the standard library only.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from upslope.rewards.sandbox.confinement import Limits, confine, proof
from upslope.rewards.sandbox.grader import grade
from upslope.rewards.sandbox.messages import Channel
from upslope.rewards.sandbox.program import answer_calls, run_script

_LONGEST = 64 << 20  # bytes of a program, or of its tests


def main(descriptor: int, packages: Sequence[str]) -> None:
    """Forks for {"role", "limits"} and sockets, answering {"pid"}; kills for {"end": pid}; until its socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    sys.path += packages
    supervisor = socket.socket(fileno=descriptor)
    while True:
        frame, descriptors, _, _ = socket.recv_fds(supervisor, 1 << 16, 8)
        if not frame:
            return
        request = json.loads(frame)
        answer = _end(request["end"]) if "end" in request else _fork(request, descriptors)
        for each in descriptors:
            os.close(each)
        supervisor.sendall(json.dumps(answer).encode())


def _fork(request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        return {"refused": str(error)}
    if not pid:
        status = 1
        try:
            status = _become(request, descriptors, parent)
        finally:  # whatever happens: a fork that came back would be a second forker
            os._exit(status)
    return {"pid": pid}


def _end(pid: int) -> dict[str, Any]:
    """Kills the process, which may have ended before; nothing of it is left."""
    os.kill(pid, signal.SIGKILL)
    return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def _become(request: dict[str, Any], descriptors: list[int], parent: int) -> int:
    """The life of a confined process; its exit status."""
    role, limits = request["role"], Limits(**request["limits"])
    streams = descriptors[1:] if role == "script" else [os.open(os.devnull, os.O_RDWR)] * 3
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sockets = descriptors[:1] if role == "script" else descriptors
    first, *others = (socket.socket(fileno=each) for each in sockets)
    _close_all_but(sockets)
    supervisor = Channel(first, limit=_LONGEST)
    try:
        confine(limits, (*sys.path, f"{sys.base_prefix}/lib"), parent)
    except OSError as error:
        supervisor.send(str(error))
        return 1
    supervisor.send("ready")
    limit = int(limits.output_kib * 1024) if role == "tests" else _LONGEST
    try:
        _ROLES[role](supervisor, *(Channel(each, limit=limit) for each in others))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _close_all_but(kept: Sequence[int]) -> None:
    """Closes every descriptor but the standard streams and those to keep: the forker's own among them."""
    low = 3
    for each in (*sorted(kept), resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        os.closerange(low, each)
        low = each + 1


def _prove(supervisor: Channel) -> None:
    supervisor.send(proof())


_ROLES: dict[str, Callable[..., None]] = {
    "program": answer_calls,
    "proof": _prove,
    "script": run_script,
    "tests": grade,
}
