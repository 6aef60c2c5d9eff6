"""Memory that is refused ends in one sentence, and nothing else is mistaken for it."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

from upslope.errors import DataError, ModelError, OutOfMemoryError
from upslope.training.memory import refusals_named

TOO_MUCH = 1 << 50  # bytes; no machine has them


def refuse(error):
    raise error


def load(error):
    try:
        refuse(error)
    except Exception as cause:
        raise ModelError("model 'x' cannot be loaded") from cause


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda: np.empty(TOO_MUCH, dtype=np.uint8),
        lambda: bytearray(TOO_MUCH),
        lambda: load(RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)")),
        lambda: refuse(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
        lambda: refuse(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        lambda: refuse(RuntimeError("could not create a primitive")),
    ],
    ids=["torch", "numpy", "python", "a model", "the system", "cuda", "onednn"],
)
def test_a_refusal_is_named(allocate):
    with pytest.raises(OutOfMemoryError, match=r"refuses memory .*training\.micro_batch_tokens"), refusals_named():
        allocate()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOENT, "No such file"),
        ModelError("no"),
        DataError("a line"),
        OutOfMemoryError("already said"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, refusals_named():
        raise error
    assert caught.value is error
