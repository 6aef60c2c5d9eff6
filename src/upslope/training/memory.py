"""Memory that the system refuses: torch and Python each say it in their own way, upslope by what needs less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from upslope.errors import ModelError, OutOfMemoryError

_REFUSALS = (  # what errors that are no MemoryError say on a CPU
    "Cannot allocate memory",  # the system's own word for it, which torch, safetensors and fork pass on
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
    except (MemoryError, RuntimeError, OSError, ModelError) as error:
        refusal = error.__cause__ if isinstance(error, ModelError) else error  # in loading, every error is the model's
        if isinstance(error, OutOfMemoryError) or not _is_refusal(refusal):
            raise
        reason = (str(refusal).strip().splitlines() or ["no memory is left"])[0]
        raise OutOfMemoryError(f"the system refuses memory that the run needs ({reason}): {_MEND}") from error


def _is_refusal(error: BaseException | None) -> bool:
    """Whether an allocation failed."""
    said = any(refusal in str(error) for refusal in _REFUSALS)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)
