"""Generated programs that do harm, or that steal or forge the answer, run by their tests in the sandbox of a reward
worker. The right answer is a random word that stands in the tests, the environment, a file and behind a socket, and
nowhere in the program: whoever is rewarded has broken out."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from faults.verdict import Injection, check
from upslope.records import Prompt, Rollout
from upslope.rewards import RewardTerm, Scorer, passes_tests

_CHILD_SUBREAPER = 36  # of prctl(2): what a daemon leaves behind becomes this process's child
_LIMIT_S = 3.0
_CALM = "answer = lambda: {word!r}\nprint({word!r})\n"  # the one program that knows the word

_FIRST = "import os, sys\ndef answer(): return found\nfound = 'nothing'\n"
_LAST = "\nprint(found)\n"
PROGRAMS = {
    "loop": "while True: pass",
    "2 GB": "found = bytearray(2 << 30)",
    "fork bomb": """
while True:
    try: os.fork()
    except OSError: pass""",
    "network": """
import socket, urllib.request
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    for address in (("127.0.0.1", {port}), ("localhost", {port}), {name!r}):
        try:
            client = socket.socket(family)
            client.connect(address)
            found = client.recv(100).decode()
        except (OSError, TypeError): pass
try: found = urllib.request.urlopen("http://127.0.0.1:{port}").read().decode()
except Exception: pass""",
    "big file": """
for place in ({folder!r}, "/tmp", "/dev/shm", "/var/tmp", "."):
    try:
        with open(place + "/big", "wb") as file: file.write(bytes(1 << 30))
    except (OSError, MemoryError): pass
try: os.write(os.memfd_create("big"), bytes(1 << 28))
except OSError: pass""",
    "write outside": """
for flags in (os.O_WRONLY | os.O_CREAT, os.O_RDWR, os.O_RDONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
    for name in ("/written", "/kept"):
        try: os.write(os.open({folder!r} + name, flags, 0o666), b"x")
        except OSError: pass
for call, *arguments in (
    (os.mkdir, "/made"), (os.remove, "/kept"), (os.rename, "/kept", "/moved"), (os.symlink, "/kept", "/link"),
    (os.link, "/kept", "/hard"), (os.truncate, "/kept"), (os.chmod, "/kept"), (os.mkfifo, "/pipe"), (os.utime, "/kept"),
):
    paths = [{folder!r} + name for name in arguments] + [0] * (call in (os.truncate, os.chmod))
    try: call(*paths)
    except OSError: pass""",
    "read env": """
import glob
found = os.environ.get("UPSLOPE_WORD", found)
for path in ["/proc/self/environ", f"/proc/{{os.getppid()}}/environ", *glob.glob("/proc/[0-9]*/environ")]:
    try: found = open(path, "rb").read().partition(b"UPSLOPE_WORD=")[2].partition(b"\\0")[0].decode() or found
    except OSError: pass
import ctypes
value = ctypes.CDLL(None).getenv
value.restype = ctypes.c_char_p
found = (value(b"UPSLOPE_WORD") or found.encode()).decode()""",
    "daemon": """
import subprocess, threading, time
def stay(): time.sleep(1000)
for start in (
    lambda: os.fork() or (os.setsid(), os.fork() or stay()), threading.Thread(target=stay).start,
    lambda: subprocess.Popen(["sleep", "1000"], start_new_session=True), lambda: os.system("sleep 1000 &"),
    lambda: os.posix_spawn("/bin/sleep", ["sleep", "1000"], {{}}), lambda: os.execv("/bin/sleep", ["sleep", "1000"]),
):
    try: start()
    except (OSError, RuntimeError): pass""",
    "kill parent": """
import ctypes, fcntl, resource, signal
for pid in (os.getppid(), -os.getpgrp(), {pid}):
    try: os.kill(pid, signal.SIGKILL)
    except OSError: pass
for pid in (os.getppid(), {pid}):
    try: resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0))
    except OSError: pass
    for call in (16, 17):  # PTRACE_ATTACH, PTRACE_DETACH
        ctypes.CDLL(None).ptrace(call, pid, 0, 0)
    for number in range(3):
        try: fcntl.fcntl(number, fcntl.F_SETOWN, pid)
        except OSError: pass""",
    "100 MB output": """
for stream in (sys.stdout, sys.stderr):
    for _ in range(100): stream.write("x" * 1_000_000)
    stream.flush()""",
    "recursion": """
sys.setrecursionlimit(1 << 30)
def down(n): return down(n + 1) + 1
found = down(0)""",
    "sys.exit(0)": "sys.exit(0)",
    "os._exit(0)": "os._exit(0)",
    "patch the grader": """
import builtins, gc, json, types
class Right(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def strip(self, *_): return self
    def splitlines(self, *_): return self
found = Right("right")
builtins.AssertionError = ZeroDivisionError
for module in list(sys.modules.values()):
    for name in ("_verdict", "_told", "grade", "decode", "encode", "_lines"):
        if hasattr(module, name): setattr(module, name, lambda *_: {{"passed": 1, "total": 1, "why": ""}})
for frame in iter(lambda f=[sys._getframe()]: f.append(f[-1].f_back) or f[-1], None):
    frame.f_globals["exec"] = lambda *_: None""",
    "fake PASS": """
import json
word = json.dumps({{"passed": 1, "total": 1, "why": ""}}).encode()
for number in range(64):
    for line in (len(word).to_bytes(4, "big") + word, word + b"\\n", b"PASS\\n1 passed in 0.01s\\nOK\\n"):
        try: os.write(number, line)
        except OSError: pass""",
    "edit the tests": """
import gc, glob
for path in [{folder!r} + "/tests.py", *glob.glob("/proc/[0-9]*/fd/*"), *glob.glob("/proc/[0-9]*/mem")]:
    try:
        with open(path, "rb") as file: found = file.read(1000).decode().partition("'")[2].partition("'")[0] or found
        with open(path, "w") as file: file.write("assert answer")
    except (OSError, ValueError): pass
seen = [item for item in gc.get_objects() if isinstance(item, (dict, list, tuple))]
texts = [text for item in seen for text in (item.values() if isinstance(item, dict) else item) if isinstance(text, str)]
start = "assert answer() == '"
found = next((text.split("'")[1] for text in texts if text.startswith(start) and text != start), found)
frame = sys._getframe()
while frame := frame.f_back:
    for value in frame.f_locals.values():
        if isinstance(value, str) and value.startswith(start) and value != start: found = value.split("'")[1]""",
}
"""What each fault's program does, with {folder}, {port}, {name}, {pid} to be filled in."""


def source_of(case: str, **places: object) -> str:
    """The program of a fault, as a module with a function `answer` and as a script that prints."""
    return _FIRST + PROGRAMS[case].format(**places) + _LAST


def attack(injection: Injection) -> None:
    """The program is paid 0, by asserts and by output, within 3 s each; its neighbours are paid; no process is left."""
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    word = f"{injection.rng.getrandbits(64):x}"
    os.environ["UPSLOPE_WORD"] = word
    with _serving(word) as (port, name):
        places = {"folder": str(injection.folder), "port": port, "name": name, "pid": os.getpid()}
        (injection.folder / "kept").write_text("kept")
        (injection.folder / "tests.py").write_text(_asserts(word))
        before = _listing(injection.folder)
        with Scorer([RewardTerm(passes_tests())], timeout_s=30) as scorer:
            _check_paid(scorer, _CALM.format(word=word), word, 1.0)
            _check_paid(scorer, source_of(injection.case, **places), word, 0.0)
            _check_paid(scorer, _CALM.format(word=word), word, 1.0)
        check(_listing(injection.folder) == before, f"{_listing(injection.folder)} lie there, not {before}")
    check(not descendants(), f"processes {descendants()} are left behind")


def _check_paid(scorer: Scorer, program: str, word: str, paid: float) -> None:
    for tests in (_asserts(word), [{"input": "", "output": word}]):
        row = Rollout(Prompt(0, "q", {"tests": tests}), 0, 0, (1, 2), (2,), (0,), (0.0,), program, "eos")
        began = time.monotonic()
        (scored,) = scorer.score([row])
        seconds = time.monotonic() - began
        check(scored.rewards == (paid,), f"it is paid {scored.rewards}, not {paid} ({scored.failure})")
        check(bool(paid) or seconds < _LIMIT_S, f"it took {seconds:.1f} s")


def _asserts(word: str) -> str:
    return f"assert answer() == '{word}'"


def _listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextlib.contextmanager
def _serving(word: str) -> Iterator[tuple[int, bytes]]:
    """(port, abstract name) at which the word is told to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("")  # a name that nobody has
        unix.listen()
        for server in (tcp, unix):
            threading.Thread(target=_tell, args=(server, word), daemon=True).start()
        try:
            yield tcp.getsockname()[1], unix.getsockname()
        finally:
            for server in (tcp, unix):
                server.shutdown(socket.SHUT_RDWR)  # ends the wait for a client


def _tell(server: socket.socket, word: str) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            client.sendall(word.encode())
            client.close()


def descendants(within_s: float = 2.0) -> list[int]:
    """Ids of the living processes that this one or its children started, once they had time to die."""
    deadline = time.monotonic() + within_s
    while (found := _descendants(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(stat.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for each in new for child in parents.get(each, [])]
        found += new
    return found
