"""Processes to do harm to: forks of one that has imported everything and computed nothing, so that a run of its own
starts in milliseconds and no pool of threads is left behind in it."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.errors import UpslopeError

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2): no injection outlives the command
Say = Callable[[str], None]
_NO_WORD = json.dumps({"how": "crashed", "message": "it ended without a word"})
_inherited: list[int] = []  # this process's own end of the pipe to its parent


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: "done", "interrupted" (KeyboardInterrupt), "refused" (an error of upslope's own, with its
    type and sentence), "crashed" (any other exception) or "killed"; and how many seconds its end took."""

    how: str
    message: str = ""
    seconds: float = 0.0


class Child:
    """A fork that runs function(say). What it says can be waited for: `say` writes a line, `line` reads one."""

    def __init__(self, function: Callable[[Say], object]) -> None:
        hear, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(hear)
            while _inherited:  # else the parent's parent would wait for this process as well
                os.close(_inherited.pop())
            _inherited.append(tell)
            _run(function, tell)
        os.close(tell)
        self._heard = os.fdopen(hear, encoding="utf-8")

    def line(self) -> str:
        """The next line said, without its end; empty once the process has ended."""
        return self._heard.readline().rstrip("\n")

    def send(self, number: signal.Signals) -> None:
        """Send a signal. The process is there until `end`, if only as a zombie."""
        os.kill(self.pid, number)

    def end(self) -> Ended:
        """Wait for the end."""
        began = time.monotonic()
        *_, last = [_NO_WORD, *self._heard]
        self._heard.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        seconds = time.monotonic() - began
        if status < 0:
            return Ended("killed", f"by signal {-status}", seconds)
        return Ended(**json.loads(last), seconds=seconds)


def ended(function: Callable[[Say], object]) -> Ended:
    """Run the function in a process of its own, to its end."""
    return Child(function).end()


def _run(function: Callable[[Say], object], tell: int) -> None:
    """Never returns: the end is told as the last line."""

    def say(text: str) -> None:
        os.write(tell, f"{text}\n".encode())

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    try:
        _tell_end(function, say)
    except KeyboardInterrupt as error:  # a second one, which came while the first was being told
        say(json.dumps({"how": "interrupted", "message": str(error)}))
    finally:  # whatever happens: a fork that went on would do its parent's work, and tidy away its folders
        os._exit(0)


def _tell_end(function: Callable[[Say], object], say: Say) -> None:
    """Run the function, and say how it ended."""
    how, message = "crashed", ""
    try:
        function(say)
        how = "done"
    except KeyboardInterrupt as error:
        how, message = "interrupted", str(error)
    except UpslopeError as error:
        how, message = "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)  # to be told takes memory, too
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    say(json.dumps({"how": how, "message": message[:2000]}))
    sys.stderr.flush()
    sys.stdout.flush()


def recording(groups: list[int]) -> type[subprocess.Popen[Any]]:
    """A Popen that notes the process group of everything it starts in a session of its own."""

    class Recorded(subprocess.Popen[Any]):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            groups.append(self.pid)

    return Recorded


def survivors(groups: list[int], *, within_s: float = 2.0) -> list[int]:
    """Ids of the living processes of these groups, once they had time to die."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and any(map(group_members, groups)):
        time.sleep(0.02)
    return [pid for group in groups for pid in group_members(group)]


def group_members(group: int) -> list[int]:
    """Ids of the living processes of a process group, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
