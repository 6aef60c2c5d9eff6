"""Where metrics go beside the run's own log: TensorBoard, Weights & Biases, MLflow, trackio.

A tracker is any object with `log(step, values)` and `close()`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from upslope import naming
from upslope.errors import DependencyError, RecipeError
from upslope.report.run import Run

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "none")


class Tracker(Protocol):
    """Takes the metrics of each step."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among the values; what is no number is passed over."""

    def close(self) -> None:
        """Write out what is pending; the tracker is then of no more use."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises: RecipeError for an unknown name; DependencyError where the package of a tracker is missing."""
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(
                f"unknown tracker {name!r}: choose from {', '.join(TRACKERS)}{naming.nearest(name, TRACKERS)}"
            )
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise DependencyError(name, name)


def open_trackers(
    names: Sequence[str],
    run: Run,
    config: Mapping[str, Any],
    *,
    own: Iterable[Tracker] = (),
    resume_step: int | None = None,
) -> Trackers:
    """The trackers of these names for one run, and the user's own; config is the recipe, shown beside the curves.

    resume_step: the run goes on from the end of this step. TensorBoard then hides what it holds of later steps; the
    others keep these beside the new ones.
    """
    trackers = Trackers(run, own, step=resume_step or 0)
    for name in names:
        if name != "none":
            trackers.open(name, config, resume_step=resume_step)
    return trackers


class Trackers:
    """Several trackers as one that never stops a run: a member that raises is left out from then on, which an event
    "tracker_failed" and a warning say once. A resumed run opens it again."""

    def __init__(self, run: Run, members: Iterable[Tracker] = (), *, step: int = 0) -> None:
        self._run = run
        self._members = list(members)
        self._step = step

    def open(self, name: str, config: Mapping[str, Any], *, resume_step: int | None) -> None:
        """Add the tracker of this name."""
        try:
            if name == "tensorboard":
                tracker: Tracker = TensorBoard(self._run.folder / "tensorboard", resume_step=resume_step)
            else:
                tracker = _EXTRAS[name](self._run.folder, config)
        except Exception as error:
            self._leave_out(name, error)
        else:
            self._members.append(tracker)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand the values to every member."""
        self._step = step
        for tracker in list(self._members):
            try:
                tracker.log(step, values)
            except Exception as error:
                self._members.remove(tracker)
                self._leave_out(type(tracker).__name__, error)
                with suppress(Exception):  # it has been said that it fails
                    tracker.close()

    def close(self) -> None:
        """Close every member."""
        while self._members:
            tracker = self._members.pop()
            try:
                tracker.close()
            except Exception as error:
                self._leave_out(type(tracker).__name__, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        problem = f"{name} failed and is left out: {type(error).__name__}: {error}"
        self._run.log("tracker_failed", step=self._step, problem=problem)
        warnings.warn(problem, stacklevel=3)


class TensorBoard:
    """Scalars for `tensorboard --logdir FOLDER`, on disk within ten seconds."""

    def __init__(self, folder: Path, *, resume_step: int | None) -> None:
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
        import wandb

        run_id = _remembered(folder / "wandb_id", uuid.uuid4().hex)
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
        import mlflow

        self._mlflow = mlflow
        remembered = folder / "mlflow_id"
        run_id = remembered.read_text() if remembered.exists() else None
        run = mlflow.start_run(run_id=run_id, run_name=folder.name, nested=True)  # within the user's own, if any
        self._run_id = _remembered(remembered, run.info.run_id)
        if run_id is None:
            try:
                mlflow.log_params(_flat(config))
            except Exception:  # a run left open would take in, or refuse, what the user starts next
                mlflow.end_run("FAILED")
                raise

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among the values; what MLflow takes in no name becomes "_"."""
        numbers = {re.sub(r"[^\w\-. :/]", "_", name)[:250]: value for name, value in _numbers(values).items()}
        self._mlflow.log_metrics(numbers, step=step, run_id=self._run_id)

    def close(self) -> None:
        """Write out what is pending."""
        self._mlflow.end_run()


class Trackio:
    """A trackio run, the same one after a resume, in the project that TRACKIO_PROJECT names, else "upslope"."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import trackio

        name = _remembered(folder / "trackio_name", f"{folder.name}-{uuid.uuid4().hex[:8]}")
        project = os.environ.get("TRACKIO_PROJECT", "upslope")
        self._trackio = trackio
        self._run = trackio.init(project, name=name, resume="allow", config=dict(config))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among the values."""
        self._run.log(_numbers(values), step=step)

    def close(self) -> None:
        """Write out what is pending."""
        self._trackio.finish()


_EXTRAS: Mapping[str, type[WandB] | type[MLflow] | type[Trackio]] = {
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def _remembered(path: Path, fresh: str) -> str:
    """What the file holds; a fresh value is written where there is none, so that a resumed run finds its own again."""
    if not path.exists():
        path.write_text(fresh)
    return path.read_text()


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
