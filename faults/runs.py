"""The small real run that faults are injected into, and what must be left of it: PPO with a separate critic, an
adaptive KL coefficient and several updates a step, so that much could go wrong half-way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import upslope
from faults.processes import Ended, ended
from faults.verdict import check
from upslope.report.run import Run
from upslope.training.checkpoint import load_latest

STEPS = 6
STOPPED = 3
UPDATES_PER_STEP = 6
SETTINGS: Mapping[str, Any] = {
    "model": "tiny-llama",
    "algorithm": "ppo",
    "critic": "separate",
    "group_size": 2,
    "kl_target": 0.05,
    "kl_horizon": 20.0,
    "epochs": 2,
    "minibatches": 3,
    "steps": STEPS,
    "prompts_per_step": 3,
    "max_new_tokens": 6,
    "warmup_steps": 2,
    "schedule": "cosine",
    "lr": 1e-3,
    "samples_per_step": 1,
    "checkpoint_every_steps": 1,
    "keep_last": 2,
    "timeout_s": 60.0,
}
_TENSORS = ("parameters.safetensors", "optimizer.safetensors")


def vowels(completion: str) -> float:
    """Share of vowels, which random text varies in."""
    return sum(letter in "aeiou" for letter in completion) / (1 + len(completion))


def task() -> upslope.Task:
    """Five prompts."""
    return upslope.Task(prompts=[f"say {word}" for word in ("sea", "sky", "fog", "oak", "ice")], reward=vowels)


class StopAfter:
    """A tracker that asks the run to stop once a step is done, as SIGTERM from a scheduler would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the signal at the end of the step."""
        if step == self.step and "step_s" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Nothing is pending."""


def start(folder: Path, *, stop_after: int | None = None, **settings: Any) -> Run:
    """Train the run in a new folder."""
    trackers = ["tensorboard", *([] if stop_after is None else [StopAfter(stop_after)])]
    return upslope.train(**{**SETTINGS, "task": task(), "run": folder, "trackers": trackers, **settings})


def resume(folder: Path, given: upslope.Task | None = None, **overrides: Any) -> None:
    """Resume the run in this process."""
    upslope.resume(folder, task=given or task(), overrides=overrides)


def resumed(folder: Path, given: upslope.Task | None = None, **overrides: Any) -> Ended:
    """Resume the run in a process of its own."""
    return ended(lambda _: resume(folder, given, **overrides))


def copied(run: Path, folder: Path) -> Path:
    """A copy of a run, to do harm to."""
    shutil.copytree(run, folder)
    return folder


def remains(folder: Path) -> dict[str, str]:
    """What a resumed run must share with the uninterrupted one, by name: digests of the last checkpoint's tensors, of
    its state (optimiser, random generators, counters) and of the final model; each step's metrics but the clock's;
    the sampled tokens."""
    run = Run.open(folder)
    last = run.checkpoints()[-1]
    state = json.loads((last / "state.json").read_text())
    del state["train"]["train_s"]
    files = [last / name for name in _TENSORS] + sorted(run.model_path.glob("*.safetensors"))
    found = {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    found["the state"] = json.dumps(state, sort_keys=True)
    found |= {f"the metrics of step {step['step']}": json.dumps(timeless(step)) for step in run.history()}
    found["the samples"] = json.dumps([sample["tokens"] for sample in run.samples()])
    return found


def timeless(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event without what the clock decides."""
    return {k: v for k, v in event.items() if k.split("/")[0] not in ("time", "tokens_per_s") and not k.endswith("_s")}


def check_bitwise(folder: Path, whole: Path) -> None:
    """Raises: NotSurvivedError naming the first thing in which the run differs from the uninterrupted one."""
    found, expected = remains(folder), remains(whole)
    check(
        found.keys() == expected.keys(), f"there is {sorted(found)} where the uninterrupted run has {sorted(expected)}"
    )
    for name, value in expected.items():
        check(found[name] == value, f"{name} differs from the uninterrupted run's")


def check_done(end: Ended) -> None:
    """The process came to its own end."""
    check(end.how == "done", f"the run {end.how}: {end.message}")


def check_refused(end: Ended, kind: str, *words: str) -> None:
    """The process ended with this error of upslope's own, whose sentence holds the words."""
    check(end.how == "refused", f"the run {end.how}, which should have been refused: {end.message}")
    check(end.message.startswith(f"{kind}: "), f"not a {kind}: {end.message}")
    for word in words:
        check(word in end.message, f"the error does not say {word!r}: {end.message}")


def check_resumes(folder: Path, whole: Path, given: upslope.Task | None = None) -> None:
    """The run is resumed to its end, and is then the uninterrupted one."""
    check_done(resumed(folder, given))
    check_bitwise(folder, whole)


def check_intact(folder: Path, *, steps: tuple[int, ...]) -> None:
    """The newest checkpoint is whole and of one of the steps; nothing half-written is left beside it."""
    checkpoints = folder / "checkpoints"
    checkpoint, problems = load_latest(checkpoints)
    check(checkpoint is not None and not problems, f"no intact checkpoint: {problems}")
    assert checkpoint is not None
    check(checkpoint.step in steps, f"the newest checkpoint is of step {checkpoint.step}, not one of {steps}")
    stale = [path.name for path in checkpoints.glob(".tmp-*")]
    check(not stale, f"stale files are left: {stale}")
