"""The system calls a confined process may make: a filter in the kernel, without native code and without privileges.

What is not on the list fails with EPERM: no socket, no process or thread, no file opened for writing, no signal to
another process. Imports the standard library only.
Source: Linux, Documentation/userspace-api/seccomp_filter.rst, and the kernel's tables of system calls.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2  # prctl(2)
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO | EPERM, _KILL_PROCESS
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_AND, BPF_JMP | BPF_JEQ
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of _CALLS, AUDIT_ARCH_*

_OPENS = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CONTROLS = (0, 1, 2, 3, 4, 1030)  # of fcntl: to duplicate, and flags; none that names another process
_TERMINALS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # of ioctl: is it one, how large, how much to read, flags

_CALLS: dict[str, tuple[int | None, int | None]] = {  # (x86_64, aarch64)
    "access": (21, None), "alarm": (37, None), "arch_prctl": (158, None), "brk": (12, 214), "clock_getres": (229, 114),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "close": (3, 57), "close_range": (436, 436),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "epoll_create": (213, None), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "epoll_wait": (232, None), "eventfd2": (290, 19),
    "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48), "faccessat2": (439, 439), "fcntl": (72, 25),
    "fstat": (5, 80), "futex": (202, 98), "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177),
    "geteuid": (107, 175), "getgid": (104, 176), "getitimer": (36, 102), "getpid": (39, 172), "getppid": (110, 173),
    "getrandom": (318, 278), "getrlimit": (97, 163), "getrusage": (98, 165), "getsockopt": (55, 209),
    "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174), "ioctl": (16, 29), "kill": (62, 129),
    "lseek": (8, 62), "lstat": (6, None), "madvise": (28, 233), "mmap": (9, 222), "mprotect": (10, 226),
    "mremap": (25, 216), "munmap": (11, 215), "nanosleep": (35, 101), "newfstatat": (262, 79), "open": (2, None),
    "openat": (257, 56), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "pread64": (17, 67), "prlimit64": (302, 261), "pselect6": (270, 72), "read": (0, 63), "readlink": (89, None),
    "readlinkat": (267, 78), "readv": (19, 65), "recvfrom": (45, 207), "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134), "rt_sigpending": (127, 136), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124), "select": (23, None), "sendto": (44, 206), "setitimer": (38, 103),
    "setsockopt": (54, 208), "shutdown": (48, 210), "sigaltstack": (131, 132), "socketpair": (53, 199),
    "stat": (4, None), "statx": (332, 291), "sysinfo": (99, 179), "tgkill": (234, 131), "time": (201, None),
    "times": (100, 153), "umask": (95, 166), "uname": (63, 160), "write": (1, 64), "writev": (20, 66),
}  # fmt: skip


def supported() -> bool:
    """Whether there is a table of system calls for this machine."""
    return platform.machine() in _ARCHES


def install(libc: ctypes.CDLL) -> None:
    """From now on this process, which has one thread, makes no other system calls than those of the list.

    Raises: OSError where the kernel takes no filter.
    """
    program = b"".join(_program(platform.machine(), os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER_MODE, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _conditions(pid: int) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """For calls that are allowed in part: (argument, mask, values of argument & mask that are allowed)."""
    return {
        "open": (1, _OPENS, (0,)),
        "openat": (2, _OPENS, (0,)),
        "fcntl": (1, 0xFFFFFFFF, _CONTROLS),
        "ioctl": (1, 0xFFFFFFFF, _TERMINALS),
        "kill": (0, 0xFFFFFFFF, (pid,)),
        "tgkill": (0, 0xFFFFFFFF, (pid,)),
        "prlimit64": (0, 0xFFFFFFFF, (0,)),  # of another process it would change the limits
        "socketpair": (1, 0xFF, (1,)),  # a stream has no address to send to
    }


def _program(machine: str, pid: int) -> Iterator[bytes]:
    """The filter as BPF instructions: the architecture, then call by call, then EPERM."""
    column, arch = _ARCHES[machine]
    conditions = _conditions(pid)
    yield _instruction(_LOAD, _ARCH)
    yield _instruction(_EQUAL, arch, 1, 0)
    yield _instruction(_RETURN, _KILL)
    for name, numbers in _CALLS.items():
        if (number := numbers[column]) is None:
            continue
        inner = list(_tested(*conditions[name])) if name in conditions else [_instruction(_RETURN, _ALLOW)]
        yield _instruction(_LOAD, _NUMBER)
        yield _instruction(_EQUAL, number, 0, len(inner))
        yield from inner
    yield _instruction(_RETURN, _REFUSE)


def _tested(argument: int, mask: int, values: tuple[int, ...]) -> Iterator[bytes]:
    """Allows where the low half of the argument, masked, is one of the values: these calls take 32 bits of it."""
    yield _instruction(_LOAD, _ARGUMENTS + 8 * argument)
    yield _instruction(_AND, mask)
    for index, value in enumerate(values):
        yield _instruction(_EQUAL, value, len(values) - index, 0)
    yield _instruction(_RETURN, _REFUSE)
    yield _instruction(_RETURN, _ALLOW)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
