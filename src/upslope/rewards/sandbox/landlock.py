"""The files a confined process may open: those beneath some folders, for reading; by Landlock, without privileges.

Imports the standard library only.
Source: Linux, Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # numbers of the system calls, the same on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS = (0, 13, 14, 15, 15, 16)  # how many rights to files the kernel's version knows; later ones know no more
_TCP = 0b11  # bind and connect, from version 4 on
_SCOPES = 0b11  # abstract sockets and signals, from version 6 on


def version(libc: ctypes.CDLL) -> int:
    """The version of the kernel's Landlock; 0 where there is none."""
    return max(0, int(libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))))


def read_only(libc: ctypes.CDLL, paths: Iterable[str]) -> None:
    """From now on this process opens nothing but what lies beneath the paths that exist, and that for reading.

    The process must have given up new privileges (PR_SET_NO_NEW_PRIVS).
    Raises: OSError where the kernel has no Landlock.
    """
    known = version(libc)
    rights = (1 << _RIGHTS[min(known, len(_RIGHTS) - 1)]) - 1
    attribute = struct.pack("@QQQ", rights, _TCP, _SCOPES)[: 24 if known >= 6 else 16 if known >= 4 else 8]
    ruleset = libc.syscall(_CREATE, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    for path in (path for path in paths if Path(path).exists()):
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ_FILE | (_READ_DIR if Path(path).is_dir() else 0), beneath)
        if libc.syscall(_ADD, ruleset, _PATH_BENEATH, rule, ctypes.c_uint(0)):
            raise OSError(ctypes.get_errno(), "landlock_add_rule", path)
        os.close(beneath)
    if libc.syscall(_RESTRICT, ruleset, ctypes.c_uint(0)):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)
