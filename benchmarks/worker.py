"""One side of a comparison, in a process of its own: python worker.py SCRIPT FUNCTION OPTIONS.

The function is called with a Turn and the options (JSON), and calls the Turn between repetitions of its work. The
harness asks for a repetition by a line on stdin and gets one line of JSON back. Needs the standard library only, for a
peer's environment holds nothing of upslope's.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("torch", "transformers", "trl", "accelerate", "numpy", "numba", "torchrl")


class Turn:
    """Called between repetitions: reports the one just done, and blocks until the next is asked for."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._started: float | None = None

    def __call__(self, **counts: Any) -> None:
        """End the repetition under way and wait; counts (tokens, say) go with its answer. The first call: loaded.

        `seconds` and `peak_bytes` among the counts replace what is measured here, for work that another process does.
        """
        elapsed = 0.0 if self._started is None else time.perf_counter() - self._started
        ready = {"versions": versions()} if self._started is None else {}
        answer = {"seconds": elapsed, "peak_bytes": peak_bytes(), **ready, **counts}
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        if not sys.stdin.readline():
            os._exit(0)  # no repetition is asked for any more: a trainer's clean-up has nothing to save
        self._started = time.perf_counter()


def peak_bytes() -> int:
    """The most memory this process ever held. On Linux, ru_maxrss would begin at what the parent held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_bytes_of_children() -> int:
    """The most memory that the largest of the processes started and ended here ever held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> dict[str, str]:
    """The versions of what is installed here and matters for speed."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    script, function, options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    runpy.run_path(script)[function](Turn(answers), **json.loads(options))


if __name__ == "__main__":
    main()
