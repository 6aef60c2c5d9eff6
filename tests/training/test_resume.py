"""A resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import CASES, STEPS, STOP_AFTER

from upslope.report.run import Run

pytestmark = pytest.mark.timeout(600)  # three processes train every case


def in_new_process(mode, root):
    script = Path(__file__).with_name("runs.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), mode, str(root)], check=True, env=environment, timeout=500)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every case as one run, and as a run that was stopped after three steps and resumed by another process."""
    whole, stopped = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("stopped")
    in_new_process("whole", whole)
    in_new_process("stopped", stopped)
    for case in CASES:
        assert Run.open(stopped / case).last_step == STOP_AFTER
        assert list(Run.open(stopped / case).events("interrupted"))
    in_new_process("resume", stopped)
    return whole, stopped


def last_checkpoint(folder):
    return Run.open(folder).checkpoints_path / f"step-{STEPS:08d}"


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_the_uninterrupted_one(folders, case):
    """CHECKS 38: parameters, optimiser, schedule, random generators, data position, KL coefficient, statistics."""
    whole, stopped = (last_checkpoint(folder / case) for folder in folders)
    for name in ("parameters.safetensors", "optimizer.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    states = [json.loads((path / "state.json").read_text()) for path in (whole, stopped)]
    for state in states:
        del state["train"]["train_s"]  # wall time
    assert states[0] == states[1]


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_logs_what_the_uninterrupted_one_logs(folders, case):
    """CHECKS 38, 39: every metric but the clock's, and the sampled ids, step by step."""
    whole, stopped = (Run.open(folder / case) for folder in folders)
    assert len(whole.history()) == STEPS
    for ours, theirs in zip(whole.history(), stopped.history(), strict=True):
        assert timeless(ours) == timeless(theirs)
    assert [s["tokens"] for s in whole.samples()] == [s["tokens"] for s in stopped.samples()]


def timeless(event):
    return {k: v for k, v in event.items() if k.split("/")[0] not in ("time", "tokens_per_s") and not k.endswith("_s")}


def test_the_final_model_is_the_same_file(folders):
    whole, stopped = (folder / "ppo" / "model" / "model.safetensors" for folder in folders)
    assert whole.read_bytes() == stopped.read_bytes()


def test_adaptive_kl_and_running_mean_moved(folders):
    """The states compared above are worth comparing: they are not what the run started with."""
    state = {
        case: json.loads((last_checkpoint(folders[0] / case) / "state.json").read_text())["train"] for case in CASES
    }
    assert state["ppo"]["kl_coef"] != 0.05
    assert state["grpo"]["kl_coef"] != 0.04
    assert state["reinforce"]["running_weight"] > 0
    assert state["reinforce"]["best"] is not None
