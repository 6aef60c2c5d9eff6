"""Who writes a run folder: one process at a time, and a dead one's claim is swept away."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from upslope.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Owner:
    """One process: pid, host, and its start in clock ticks since boot (0 where there is no /proc), which tells a
    process from a later one that was given the same pid. `since` is the time of the claim in seconds since 1970."""

    pid: int
    host: str
    started: int
    since: float = 0.0

    @staticmethod
    def current() -> Owner:
        """This process."""
        stat = _stat(os.getpid())
        return Owner(os.getpid(), socket.gethostname(), stat[1] if stat else 0, time.time())

    @property
    def is_here(self) -> bool:
        """Whether the process belongs to this host, so that it can be asked after."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether the process still runs. One on another host cannot be asked after and is taken to be alive."""
        if not self.is_here:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's, so it exists
        stat = _stat(self.pid)
        return stat is None or (stat[0] not in "ZX" and stat[1] == self.started)


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


class FolderLock:
    """A claim on a folder, by a file that names the process holding it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> Owner | None:
        """Claim the folder for this process; returns the dead owner whose claim was swept away, if there was one.

        Raises: CheckpointError when a living process holds the folder, or the lock cannot be written.
        """
        try:
            with self._open() as file:
                owner = _parse(file.read())
                if owner is not None and owner.is_alive():
                    raise CheckpointError(self._refusal(owner))
                file.seek(0)
                file.truncate()
                file.write(json.dumps(asdict(Owner.current())))
        except OSError as error:
            raise CheckpointError(f"cannot lock {self.path}: {error.strerror}; is its folder writable?") from error
        return owner

    def holder(self) -> Owner | None:
        """The living process that holds the folder, or None."""
        try:
            owner = _parse(self.path.read_text())
        except OSError:
            return None
        return owner if owner is not None and owner.is_alive() else None

    def release(self) -> None:
        """Give the claim up. In a folder that has become read-only the file stays, and is swept once we are gone."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _open(self) -> TextIO:
        """The lock file, held by flock until it is closed, so that two claims cannot cross each other."""
        while True:
            file = self.path.open("a+")
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                file.seek(0)
                return file
            file.close()  # released, hence deleted, while we waited for it

    def _refusal(self, owner: Owner) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
        mend = "wait for it, stop it, or use another folder"
        if not owner.is_here:
            mend += f"; if that process is gone, delete {self.path}"
        return f"{self.path.parent} is being written by process {owner.pid} on {owner.host} since {since}: {mend}"


def _parse(text: str) -> Owner | None:
    """The owner a lock file names; None where it names nobody, as after a crash while it was written."""
    try:
        owner = Owner(**json.loads(text))
    except (ValueError, TypeError):
        return None
    # to signal process 0 or below is to signal many
    return owner if type(owner.pid) is int and owner.pid > 0 else None
