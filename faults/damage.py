"""Checkpoints damaged on the disk: cut short, or with a bit flipped."""

from __future__ import annotations

import random

from faults.runs import STOPPED, check_resumes, copied
from faults.verdict import Injection, check
from upslope.report.run import Run

FILES = ("parameters.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def truncate(data: bytearray, rng: random.Random) -> bytearray:
    """The first so many of the bytes, not all."""
    return data[: rng.randrange(len(data))]


def flip(data: bytearray, rng: random.Random) -> bytearray:
    """The bytes with one bit changed."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def damage(injection: Injection) -> None:
    """One file of the newest checkpoint is damaged: noticed, said by name, and the checkpoint before it is used."""
    change, _, number = injection.case.partition(" ")
    folder = copied(injection.stopped, injection.folder / "run")
    file = folder / "checkpoints" / f"step-{STOPPED:08d}" / FILES[int(number) % len(FILES)]
    changed = {"truncate": truncate, "flip": flip}[change](bytearray(file.read_bytes()), injection.rng)
    file.write_bytes(changed)
    check_resumes(folder, injection.whole)
    run = Run.open(folder)
    said = [event["problem"] for event in run.events("damaged_checkpoint")]
    check(len(said) == 1 and str(file) in said[0], f"the damage is not said: {said}")
    resumes = [event["step"] for event in run.events("resume", superseded=True)]
    check(resumes == [STOPPED - 1], f"the run went on from step {resumes}, not from {STOPPED - 1}")
