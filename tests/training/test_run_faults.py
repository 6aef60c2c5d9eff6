"""Faults to survive: SIGTERM in every phase, kill -9 at random moments; the resumed run is bitwise the whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    script = Path(__file__).with_name("fault_runs.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("faults"))],
        stdout=subprocess.PIPE,
        check=True,
        env=environment,
        timeout=170,
        text=True,
    )
    return [json.loads(line) for line in finished.stdout.splitlines()]


@pytest.mark.parametrize(
    ("fault", "injected"),
    [
        ("SIGTERM in rollout", 5),
        ("SIGTERM in reward", 5),
        ("SIGTERM in optimiser", 5),
        ("SIGTERM in save", 5),
        ("kill -9", 10),
    ],
)
def test_survived(verdicts, fault, injected):
    """CHECKS 38 and the table of faults: saved within one step and 10 s, and resumed bit for bit."""
    mine = [verdict for verdict in verdicts if verdict["fault"] == fault]
    assert len(mine) == injected
    assert all(verdict["saved"] and verdict["bitwise"] for verdict in mine), mine
