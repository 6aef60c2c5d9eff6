"""NaN and infinities where numbers are made: rewards, logits, gradients, values."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch

from faults.processes import ended
from faults.runs import STEPS, check_done, check_refused, check_resumes, start, task, vowels
from faults.verdict import Injection, check
from upslope.engines import local
from upslope.report.run import Run
from upslope.rewards import RewardTerm
from upslope.training import policy_gradient
from upslope.training.checkpoint import load_latest
from upslope.training.session import Session

PLACES = ("reward", "logits", "gradient", "value")
NUMBERS = ("nan", "+inf", "-inf")
BAD_STEPS = range(1, STEPS)
CASES = tuple(" ".join(map(str, case)) for case in itertools.product(PLACES, NUMBERS, BAD_STEPS))
_IN_A_ROW = 2


def poison(injection: Injection) -> None:
    """One bad step is counted and skipped, also across a stop and a resume; several in a row end the run. No weight
    is ever other than finite."""
    place, number, bad = injection.case.split()
    once, stopped, lasting = (injection.folder / name for name in ("once", "stopped", "lasting"))
    step = int(bad)
    end = ended(lambda _: _train(once, place, float(number), {step}))
    check_done(end)
    check_finite(once)
    counted = {e["step"] for e in Run.open(once).history() if e.get("problem") or e["dropped"]}
    check(counted == {step}, f"steps {sorted(counted)} are counted as bad, not {step}")
    end = ended(lambda _: _train(stopped, place, float(number), {step}, stop_after=step))
    check(end.how == "interrupted", f"the run to be stopped {end.how}: {end.message}")
    check_resumes(stopped, once)
    _check_gives_up(lasting, place, float(number), step)


def check_finite(folder: Path) -> None:
    """Every weight and optimiser slot of the newest checkpoint is a finite number."""
    checkpoint, problems = load_latest(folder / "checkpoints")
    check(checkpoint is not None and not problems, f"no intact checkpoint: {problems}")
    assert checkpoint is not None
    for part, named in checkpoint.tensors.items():
        for name, tensor in named.items():
            check(bool(torch.isfinite(tensor).all()), f"{part} {name} is not finite")


def _check_gives_up(folder: Path, place: str, number: float, step: int) -> None:
    """The run whose every step from this one on is bad stops after training.max_bad_steps, and says what was wrong."""
    bad, last = set(range(step, STEPS + 1)), step + _IN_A_ROW - 1
    end = ended(lambda _: _train(folder, place, number, bad, max_bad_steps=_IN_A_ROW))
    check_refused(end, "DivergenceError", f"{_IN_A_ROW} steps in a row", "the last problem: ")
    found = Run.open(folder).last_step
    check(found == last, f"it stopped after step {found}, not {last}")
    check_finite(folder)


class _Now:
    """Which step the run of this process is at, and what is added to its numbers: nothing, unless it is a bad one."""

    step = 0
    added = 0.0

    def added_in(self, odd: int) -> float:
        """What is added in odd steps (1), or in even ones (0)."""
        return self.added if self.step % 2 == odd else 0.0


def _train(folder: Path, place: str, number: float, bad: set[int], **settings: Any) -> None:
    now, gather = _Now(), policy_gradient.gather

    def gathered(session: Session, *, step: int) -> Any:
        if now.step == 0:
            _add(session, place, now)
        now.step, now.added = step, number if step in bad else 0.0
        return gather(session, step=step)

    policy_gradient.gather = gathered
    if place == "reward":
        term = RewardTerm(lambda completion: vowels(completion) + now.added, name="vowels")
        settings |= {"task": dataclasses.replace(task(), reward=term), "isolation": "none"}
    start(folder, **settings)


def _add(session: Session, place: str, now: _Now) -> None:
    """Add the number wherever the place's numbers are made; to logits in odd steps when sampling, in even ones when
    scoring, by way of the last hidden states. (Adding 0 changes nothing.)"""
    module = session.policy.module
    if place == "gradient":
        next(module.model.parameters()).register_hook(lambda grad: grad + now.added)
    elif place == "value":
        module.value_head.register_forward_hook(lambda head, given, values: values + now.added)
    elif place == "logits":
        warp, norm = local.warp, module.model.base_model.norm
        local.warp = lambda logits, how: warp(logits + now.added_in(odd=1), how)
        norm.register_forward_hook(lambda norm, given, hidden: hidden + now.added_in(odd=0))
