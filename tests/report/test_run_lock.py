"""One writer a run folder (CHECKS, faults: stale lock): the living are refused, the dead are swept, and said."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from upslope.errors import CheckpointError
from upslope.report.lock import FolderLock, Owner
from upslope.report.run import Run

_WRITER = """
import sys, time
from upslope.report.run import Run
with Run.open(sys.argv[1]) as run:
    run.log("train", step=7, reward=1.0)
    print("writing", flush=True)
    time.sleep(60)
"""

_RACE = """
import os, sys, time
from pathlib import Path
from upslope.errors import CheckpointError
from upslope.report.lock import FolderLock

def claim(path, verdicts, stay):
    try:
        FolderLock(path).acquire()
        os.write(verdicts, b"1")
    except CheckpointError:
        os.write(verdicts, b"0")
    os.read(stay, 1)  # alive until all have their verdict
    os._exit(0)

path = Path(sys.argv[1])
winners = []
for _ in range(20):
    path.write_text('{"pid": 999999999, "host": "%s", "started": 1, "since": 0}' % os.uname().nodename)
    verdicts, verdict = os.pipe()
    stay, leave = os.pipe()
    for _ in range(8):
        if not os.fork():
            os.close(leave)
            claim(path, verdict, stay)
    winners.append(sum(os.read(verdicts, 1) == b"1" for _ in range(8)))
    os.close(leave)
    for _ in range(8):
        os.wait()
print(winners)
"""


def _python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_living_writer_is_refused_and_one_killed_is_swept_with_an_event(tmp_path):
    run = Run.create(tmp_path / "run", "seed = 1\n")
    writer = _python(_WRITER, str(run.folder))
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        with pytest.raises(CheckpointError, match=f"is being written by process {writer.pid} on .* since .*: wait"):
            run.__enter__()
        assert f"being written by process {writer.pid}" in repr(run)
        writer.send_signal(signal.SIGKILL)
        while _state(writer.pid) != "Z":  # dead, though its parent has not asked for it yet
            time.sleep(0.01)
        with run:
            assert json.loads((run.folder / "lock").read_text())["pid"] == os.getpid()
    finally:
        writer.kill()
        writer.communicate()
    (event,) = run.events("stale_lock")
    assert (event["pid"], event["step"]) == (writer.pid, 7)
    assert not (run.folder / "lock").exists()


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0]


def test_of_eight_processes_that_find_a_stale_lock_one_gets_the_folder(tmp_path):
    race = _python(_RACE, str(tmp_path / "lock"))
    output, _ = race.communicate(timeout=60)
    assert output == f"{[1] * 20}\n"


def test_a_claim_that_waited_while_the_lock_was_released_counts(tmp_path):
    """The waiter holds a file that is deleted by then: its claim must be on the one that everybody sees."""
    lock = FolderLock(tmp_path / "lock")
    with lock._open():
        waiter = threading.Thread(target=lock.acquire)
        waiter.start()
        waiter.join(0.1)
        assert waiter.is_alive()
        lock.release()
    waiter.join(10)
    holder = lock.holder()
    assert holder is not None
    assert holder.pid == os.getpid()


def test_a_pid_that_was_given_to_another_process_since_is_swept(tmp_path):
    lock = FolderLock(tmp_path / "lock")
    earlier = replace(Owner.current(), started=Owner.current().started - 1)
    lock.path.write_text(json.dumps(asdict(earlier)))
    assert lock.holder() is None
    assert lock.acquire() == earlier


def test_the_same_process_is_refused_twice(tmp_path):
    run = Run.create(tmp_path / "run", "")
    with run, pytest.raises(CheckpointError, match=f"process {os.getpid()} on"):
        Run.open(run.folder).__enter__()


def test_another_hosts_lock_is_believed_and_the_error_says_which_file_to_delete(tmp_path):
    lock = FolderLock(tmp_path / "lock")
    lock.path.write_text(json.dumps(asdict(Owner(pid=1, host="not-" + socket.gethostname(), started=0))))
    with pytest.raises(CheckpointError, match=r"if that process is gone, delete .*/lock$"):
        lock.acquire()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '"x"'])
def test_a_lock_that_names_nobody_is_free(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    lock = FolderLock(tmp_path / "lock")
    assert lock.holder() is None
    assert lock.acquire() is None
    assert lock.holder() is not None


def test_an_error_in_the_block_releases_the_folder(tmp_path):
    run = Run.create(tmp_path / "run", "")
    with pytest.raises(ZeroDivisionError), run:
        raise ZeroDivisionError
    with run:
        pass


def test_a_folder_that_has_become_read_only_hides_no_other_error(tmp_path, monkeypatch):
    """The lock cannot be deleted then: it stays, and names this process, until this process is gone."""
    run = Run.create(tmp_path / "run", "")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    run.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", read_only)
        run.__exit__(None, None, None)
    holder = FolderLock(run.folder / "lock").holder()
    assert holder is not None
    assert holder.pid == os.getpid()


def test_disk_full_in_the_lock_names_it_and_leaves_the_folder_free(tmp_path, file_size_limit):
    run = Run.create(tmp_path / "run", "")
    with file_size_limit(8), pytest.raises(CheckpointError, match=r"cannot lock .*/lock: File too large"):
        run.__enter__()
    with run:
        pass
