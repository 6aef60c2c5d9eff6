"""Reward functions that misbehave where a fault is named. A module of its own, without torch, so that worker processes
import it quickly."""

import os
import sys
import threading
import time

FAULTS = {  # and why the sample is dropped, where it is; `{}` is the time limit
    "raises": "raised ValueError",
    "none": "no reward applies",
    "nan": "returned nan",
    "wrong length": "returned a list of the wrong length",
    "str": "returned str",
    "huge": "returned a number beyond float32",
    "hangs": "timed out after {:g} s",
    "sys.exit": "raised SystemExit",
    "os._exit": "ended its process with exit code 7",
    "2 GB": "raised MemoryError",
    "10 MB of output": None,
    "fork that stays": None,
    "thread": None,
    "slow": None,
    "fork": None,
    "fork, then dies": "ended its process with exit code 8",
}
TABLE = tuple(FAULTS)[:14]  # those of the table; the last two are further ways to fork
FAILS_WHOLE_CALL = {"raises", "wrong length", "hangs", "sys.exit", "os._exit", "2 GB", "fork, then dies"}


def misbehave(fault):
    """A value of 1.0 unless the fault gives another."""
    match fault:
        case "raises":
            raise ValueError("no")
        case "none":
            return None
        case "nan":
            return float("nan")
        case "wrong length":
            return [1.0] * 99
        case "str":
            return "1.0"
        case "huge":
            return 1e308
        case "hangs":
            while True:
                pass
        case "sys.exit":
            sys.exit(0)
        case "os._exit":
            os._exit(7)
        case "2 GB":
            bytearray(2 << 30)
        case "10 MB of output":
            sys.stdout.write("x" * 10_000_000)
            sys.stdout.flush()
        case "fork":
            os.fork()  # both come back
        case "fork that stays":
            if os.fork() == 0:
                time.sleep(1000)
        case "fork, then dies":
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(8)
        case "thread":
            threading.Thread(target=time.sleep, args=(1000,)).start()
        case "slow":
            time.sleep(0.3)
    return 1.0


def row(completion):
    return misbehave(completion)


def batch(completions, **kwargs):
    values = [misbehave(completion) for completion in completions]
    return values[:-1] if "wrong length" in completions else values


async def blocking(completion):
    return misbehave(completion)


def hostile_row(completion, fault):
    """Misbehaves on the rows of some prompts; the others are paid by length."""
    return misbehave(fault) if fault else len(completion) / 10


def hostile_batch(completions, fault, **kwargs):
    values = [hostile_row(*pair) for pair in zip(completions, fault, strict=True)]
    return values[:-1] if "wrong length" in fault else values
