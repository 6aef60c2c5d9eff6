"""Where metrics go beside the run's own log: TensorBoard, Weights & Biases, MLflow. A tracker is any object with
`log(step, values)` and `close()`."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from upslope.errors import DependencyError, RecipeError

TRACKERS = ("tensorboard", "wandb", "mlflow", "none")


class Tracker(Protocol):
    """Takes the metrics of each step."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among the values; what is no number is passed over."""

    def close(self) -> None:
        """Write out what is pending; the tracker is then of no more use."""


def open_trackers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], *, resume_step: int | None = None
) -> list[Tracker]:
    """The trackers of these names for one run folder; config is the recipe, shown beside the curves where possible.

    resume_step: the run goes on from the end of this step; what trackers hold of later steps is hidden or replaced.
    Raises: RecipeError for an unknown name; DependencyError where the tracker's package is missing.
    """
    for name in names:
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"unknown tracker {name!r}: choose from {', '.join(TRACKERS)}{hint}")
    trackers: list[Tracker] = []
    if "tensorboard" in names:
        trackers.append(TensorBoard(folder / "tensorboard", resume_step=resume_step))
    if "wandb" in names:
        trackers.append(WandB(folder, config))
    if "mlflow" in names:
        trackers.append(MLflow(folder, config))
    return trackers


class TensorBoard:
    """Scalars for `tensorboard --logdir FOLDER`, on disk within ten seconds."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among the values."""
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()


class WandB:
    """A Weights & Biases run, the same one after a resume. Project and mode come from its WANDB_* variables."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise DependencyError("wandb", "wandb") from error
        remembered = folder / "wandb_id"
        if not remembered.exists():
            remembered.write_text(uuid.uuid4().hex)
        run_id = remembered.read_text()
        self._run = wandb.init(id=run_id, resume="allow", name=folder.name, dir=str(folder), config=dict(config))
        # our own step axis: W&B's may only grow, so it would drop the steps that a resumed run does again
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among the values."""
        self._run.log({**_numbers(values), "step": step})

    def close(self) -> None:
        """Write out what is pending."""
        self._run.finish()


class MLflow:
    """An MLflow run, the same one after a resume. Server and experiment come from its MLFLOW_* variables."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise DependencyError("mlflow", "mlflow") from error
        self._mlflow = mlflow
        remembered = folder / "mlflow_id"
        run_id = remembered.read_text() if remembered.exists() else None
        run = mlflow.start_run(run_id=run_id, run_name=folder.name)
        if run_id is None:
            remembered.write_text(run.info.run_id)
            mlflow.log_params(_flat(config))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among the values."""
        self._mlflow.log_metrics(_numbers(values), step=step)

    def close(self) -> None:
        """Write out what is pending."""
        self._mlflow.end_run()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The scalars among the values as floats, single-element tensors and NumPy scalars included."""
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
    return {name: float(value) for name, value in plain.items() if isinstance(value, int | float)}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.name`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
