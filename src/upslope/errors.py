"""Everything a user can cause raises one of these, with one sentence that says what, where and how to mend it.

UpslopeError
├── RecipeError      a setting of the recipe: misspelt, out of range, or at odds with another
├── DataError        a line of a data file, or a prompt
├── ModelError       a model that is missing, broken, or not of the kind asked for
├── RecordError      a rollout or batch whose lengths, ids or numbers contradict each other
├── RewardError      a reward function that cannot be called, or that failed on every sample
├── CheckpointError  a checkpoint or run folder that is missing, damaged or in use
├── OutOfMemoryError memory that a run needs and the system refuses
├── KernelError      compiled kernels that were asked for and cannot be had on this machine
├── DivergenceError  a training run whose losses or gradients stayed non-finite
└── DependencyError  an optional package that is not installed; names the extra that brings it
"""

from __future__ import annotations


class UpslopeError(Exception):
    """The root of everything upslope raises on purpose."""


class RecipeError(UpslopeError, ValueError):
    """A setting of the recipe is misspelt, out of range, or at odds with another."""


class DataError(UpslopeError, ValueError):
    """A data file, one of its lines, or a prompt cannot be used."""


class ModelError(UpslopeError):
    """A model is missing, broken, or not of the kind that was asked for."""


class RecordError(UpslopeError, ValueError):
    """A rollout or batch contradicts itself: lengths, ids, or non-finite numbers."""


class RewardError(UpslopeError):
    """A reward function cannot be called, or failed on every sample."""


class CheckpointError(UpslopeError):
    """A checkpoint or run folder is missing, damaged, or in use by another process."""


class DivergenceError(UpslopeError):
    """Training produced non-finite losses or gradients too many times in a row."""


class OutOfMemoryError(UpslopeError, MemoryError):
    """The system refuses memory that the run needs."""


class KernelError(UpslopeError):
    """There are no compiled kernels here: no compiler, one that fails, or one that compiles something else."""


class DependencyError(UpslopeError, ImportError):
    """An optional package is missing; the message names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed; install it with: pip install 'upslope[{extra}]'")
