"""Kills and signals at real runs, in forks of one fresh process; prints one JSON line a fault.

Forking after the imports makes each run a process of its own in milliseconds; no torch thread pool exists by then.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import runs
import torch

import upslope
from upslope.engines.local import LocalEngine
from upslope.report.run import Run
from upslope.rewards import Scorer
from upslope.training import policy_gradient, session

SETTINGS = {"checkpoint_every_steps": 1, "keep_last": 2}
PHASES = {
    "rollout": (LocalEngine, "sample"),
    "reward": (Scorer, "score"),
    "optimiser": (policy_gradient, "update"),
    "save": (session, "save_checkpoint"),
}
OK, INTERRUPTED, FAILED = 0, 130, 1


def in_fork(function):
    """The child's process id; its exit status says how the function ended."""
    child = os.fork()
    if child:
        return child
    status = FAILED
    try:
        function()
        status = OK
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        os._exit(status)


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(folder):
    runs.COMMON.update(SETTINGS)
    runs.start("grpo", folder)


def resume(folder):
    upslope.resume(folder, task=runs.task())


def signal_in(phase, call, number):
    """Patch the phase's function so that its call-th call is interrupted by a signal to this process."""
    owner, name = PHASES[phase]
    original, calls = getattr(owner, name), [0]

    def patched(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def fingerprint(folder):
    """Every byte of the last checkpoint but the clock's."""
    path = Run.open(folder).checkpoints_path / f"step-{runs.STEPS:08d}"
    state = json.loads((path / "state.json").read_text())
    del state["train"]["train_s"]
    tensors = [(path / f"{name}.safetensors").read_bytes() for name in ("parameters", "optimizer")]
    return json.dumps(state, sort_keys=True), *tensors


def terminated(root, whole, phase, call):
    """SIGTERM inside one phase of step `call`: saved within one step and ten seconds, and resumed bit for bit."""
    folder = Path(root) / f"term-{phase}-{call}"

    def stopped():
        signal_in(phase, call, signal.SIGTERM)
        start(folder)

    began = time.monotonic()
    status = status_of(in_fork(stopped))
    seconds = time.monotonic() - began
    steps = [int(path.name[5:]) for path in Run.open(folder).checkpoints()]
    resumed = status_of(in_fork(lambda: resume(folder)))
    return {
        "fault": f"SIGTERM in {phase}",
        "saved": status == INTERRUPTED and max(steps, default=0) >= call - 1 and seconds < 10,
        "bitwise": resumed == OK and fingerprint(folder) == whole,
    }


def killed(root, whole, number):
    """kill -9 at a random moment after the first checkpoint; resumed bit for bit."""
    folder = Path(root) / f"kill-{number}"
    child = in_fork(lambda: start(folder))
    while not list(folder.glob("checkpoints/step-*")):
        time.sleep(0.002)
    time.sleep(random.Random(number).uniform(0.0, 0.4))
    os.kill(child, signal.SIGKILL)
    status_of(child)
    resumed = status_of(in_fork(lambda: resume(folder)))
    return {"fault": "kill -9", "saved": True, "bitwise": resumed == OK and fingerprint(folder) == whole}


def main(root):
    torch.set_num_threads(1)
    whole = Path(root) / "whole"
    assert status_of(in_fork(lambda: start(whole))) == OK
    expected = fingerprint(whole)
    for phase in PHASES:
        for call in range(1, 6):
            print(json.dumps(terminated(root, expected, phase, call)), flush=True)
    for number in range(10):
        print(json.dumps(killed(root, expected, number)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
