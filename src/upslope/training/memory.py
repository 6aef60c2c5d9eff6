"""Memory that the system refuses: torch and Python each say it in their own way, upslope by what needs less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from upslope.errors import OutOfMemoryError

_REFUSALS = (  # what plain RuntimeErrors say on a CPU
    "DefaultCPUAllocator",  # torch's own tensors
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN, for its code and scratch space, once it has found a way to compute
)
_MEND = (
    "need less by training.micro_batch_tokens, engine.cache_gib, engine.max_rows, algorithm.group_size or "
    "model.gradient_checkpointing; a run that had begun goes on from its last checkpoint by `upslope resume`"
)


@contextmanager
def refusals_named() -> Iterator[None]:
    """Within the context, memory that is refused ends in an error that says what needs less of it.

    Raises: OutOfMemoryError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not _is_refusal(error):
            raise
        reason = (str(error).strip().splitlines() or ["no memory is left"])[0]
        raise OutOfMemoryError(f"the system refuses memory that the run needs ({reason}): {_MEND}") from error


def _is_refusal(error: Exception) -> bool:
    """Whether an allocation failed."""
    said = any(refusal in str(error) for refusal in _REFUSALS)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)
