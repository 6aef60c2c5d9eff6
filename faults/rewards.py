"""Reward functions that misbehave on one prompt in four of a real run, in the worker process, as a user's would."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import upslope
from faults import hostile
from faults.processes import ended, recording, survivors
from faults.runs import check_done, check_resumes, start
from faults.verdict import Injection, check
from upslope.report.run import Run
from upslope.rewards import RewardTerm, Scorer
from upslope.training import launch

SHAPES = {"row": hostile.hostile_row, "batch": hostile.hostile_batch}
CASES = tuple(f"{shape}: {fault}" for shape in SHAPES for fault in hostile.TABLE)
_TIMEOUT_S = 1.0
_STEPS, _GROUP, _PROMPTS = 4, 2, 4
_SETTINGS: dict[str, Any] = {
    "steps": _STEPS,
    "group_size": _GROUP,
    "prompts_per_step": _PROMPTS // 2,  # so that the hostile prompt is drawn once in two steps
    "minibatches": 1,
    "timeout_s": _TIMEOUT_S,
}


def misbehave(injection: Injection) -> None:
    """The run goes on to its end; the samples are dropped and counted by reason, no others are; no process is left;
    and a run stopped half-way and resumed is the same."""
    shape, _, fault = injection.case.partition(": ")
    prompts = [{"prompt": f"say {n}", "fault": fault if n == 2 else ""} for n in range(_PROMPTS)]
    task = upslope.Task(prompts=prompts, reward=RewardTerm(SHAPES[shape], name="hostile"))
    whole, stopped = injection.folder / "whole", injection.folder / "stopped"
    check_done(ended(lambda _: _train(whole, task)))
    _check_counted(whole, shape, fault)
    end = ended(lambda _: _train(stopped, task, stop_after=_STEPS // 2))
    check(end.how == "interrupted", f"the run to be stopped {end.how}: {end.message}")
    _limit_worker()
    check_resumes(stopped, whole, task)


def _limit_worker() -> None:
    """A worker may take 1 GiB beyond its start, from here on in this process: less than the 4 GiB of a run."""
    launch.Scorer = functools.partial(Scorer, memory_bytes=1 << 30)


def _train(folder: Path, task: upslope.Task, **settings: Any) -> None:
    groups: list[int] = []
    subprocess.Popen = recording(groups)
    _limit_worker()
    try:
        start(folder, task=task, **_SETTINGS, **settings)
    finally:
        left = survivors(groups)
        check(bool(groups) and not left, f"processes {left} of {len(groups)} workers are left behind")


def _check_counted(folder: Path, shape: str, fault: str) -> None:
    drawn = _STEPS * _GROUP // 2  # rows of the hostile prompt
    rows = drawn * 2 if shape == "batch" and fault in hostile.FAILS_WHOLE_CALL else drawn
    reason = hostile.FAULTS[fault]
    history = Run.open(folder).history()
    found = {name: sum(s.get(name, 0) for s in history) for step in history for name in step if "dropped/" in name}
    name = "dropped/" + ("" if fault == "none" else "hostile: ") + str(reason).format(_TIMEOUT_S)
    expected = {} if reason is None else {name: rows}
    check(found == expected, f"{found} is counted, not {expected}")
    samples, dropped = (sum(step[name] for step in history) for name in ("samples", "dropped"))
    total = _STEPS * _PROMPTS // 2 * _GROUP
    check(samples + dropped == total, f"{samples} samples and {dropped} dropped are not {total}")
