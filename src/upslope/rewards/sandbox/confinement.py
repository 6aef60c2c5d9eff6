"""What a process gives up before it runs code that nobody trusts, and the proof that it has.

Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from upslope.rewards.sandbox import landlock, seccomp

_PARENT_DEATH_SIGNAL, _NO_NEW_PRIVS = 1, 38  # prctl(2)
_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # version 3, of this process: none
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_ROOM = 16 << 20  # bytes of memory that the smallest program needs
_SECRET = "/proc/self/status"  # a file that every process can read, and a confined one cannot

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """What a program may take. It never may write a file, start a process or a thread, or open a socket.

    As `Sandbox` documents them, whose defaults stand there.
    """

    timeout_s: float
    memory_mib: float
    output_kib: float


def missing() -> str | None:
    """What this machine lacks for the confinement; None where it has all of it."""
    if not seccomp.supported():
        return "a table of system calls for its processor (there are x86_64 and aarch64)"
    if not landlock.version(libc):
        return "Landlock (Linux 5.13 with `landlock` among its security modules; a container's profile may forbid it)"
    return None


def confine(limits: Limits, readable: tuple[str, ...], parent: int) -> None:
    """Gives up for good: all files but Python's own to read, sockets, other processes, privileges.

    Dies with its parent. The process has one thread.
    Raises: OSError naming what the kernel refuses.
    """
    _check_call(libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError):  # the first to go where the machine runs out of memory
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.chdir("/")
    _limit(limits)
    _check_call(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    landlock.read_only(libc, (*readable, *_SYSTEM, *_DEVICES))
    _check_call(libc.capset(*_CAPABILITIES), "capset")
    seccomp.install(libc)


def proof() -> str | None:
    """What this process can still do although it was confined; None where it was refused everything that it tried."""
    attempts: dict[str, Callable[[], object]] = {
        "read a file": lambda: os.close(os.open(_SECRET, os.O_RDONLY)),
        "write a file": lambda: os.close(os.open("/dev/null", os.O_WRONLY)),
        "open a socket": lambda: socket.socket().close(),
        "start a process": _fork,
        "signal its parent": lambda: os.kill(os.getppid(), 0),
    }
    for name, attempt in attempts.items():
        with contextlib.suppress(PermissionError):
            attempt()
            return name
    return None if resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0) else "raise its limits"


def _limit(limits: Limits) -> None:
    seconds = int(-(-limits.timeout_s // 1)) + 1  # the clock, which the other side keeps, comes first
    memory = int(limits.memory_mib * (1 << 20))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if memory < used + _ROOM:
        raise OSError(f"memory_mib is too low for the interpreter alone; it needs {(used + _ROOM >> 20) + 1}")
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for name, bound in bounds.items():
        hard = resource.getrlimit(name)[1]
        lowest = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(name, (lowest, lowest))


def _fork() -> None:
    if not os.fork():
        os._exit(0)


def _check_call(result: int, name: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{name} is refused")
