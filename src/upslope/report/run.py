"""One run, one folder: the trainer writes it, and whoever wants to know what happened reads it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from upslope.errors import CheckpointError, ModelError, RecordError
from upslope.records import Rollout
from upslope.report.jsonl import ABOUT_THE_FOLDER, JsonLines, standing
from upslope.report.lock import FolderLock, Owner


class Run:
    """A run folder: metrics, samples, checkpoints and the final model.

    Layout: recipe.toml (as resolved), events.jsonl (one line an event), samples.jsonl (one line a sample),
    checkpoints/, model/ (an ordinary Transformers folder), tensorboard/, and `lock` while a process writes it.

        run = Run.open("runs/ppo")
        run.metrics["reward"]                # {step: value}
        run.history()[-1]                    # the last training step
        run.load_model()                     # the trained model

    A trainer claims the folder for itself with `with run:`; reading needs no claim. Both logs are append-only. Where
    a run crashed and was resumed from an earlier step, they hold the steps in between twice; `log_resume` marks the
    place, and every reader takes what was written last.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._events = JsonLines(self.events_path)
        self._samples = JsonLines(self.samples_path)
        self._lock = FolderLock(self.folder / "lock")

    @staticmethod
    def create(folder: Path | str, recipe_toml: str, *, exist_ok: bool = False) -> Run:
        """A new run in a folder that holds none yet, or, with exist_ok, anew over the one it holds.

        Raises: CheckpointError when the folder holds a run already, is being written, or cannot be written.
        """
        run = Run(folder)
        if run._has_begun and not exist_ok:
            raise CheckpointError(
                f"{run.folder} already holds a run: continue it by `upslope resume {run.folder}` or name another folder"
            )
        try:
            run.checkpoints_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the run folder {run.folder}: {error.strerror}") from error
        with run:
            write_text(run.recipe_path, recipe_toml)
            if run._events.path.exists():
                run.log_resume(-1)
        return run

    @staticmethod
    def open(folder: Path | str) -> Run:
        """The run that a folder holds. Raises: CheckpointError when it holds none."""
        run = Run(folder)
        if not run.recipe_path.is_file():
            raise CheckpointError(f"{run.folder} is no run folder: it holds no recipe.toml")
        return run

    # Writing

    def __enter__(self) -> Run:
        """Claim the folder for this process. Raises: CheckpointError when another living process holds it."""
        swept = self._lock.acquire()
        if swept is not None:
            try:
                self.log("stale_lock", step=self.last_step, pid=swept.pid, host=swept.host)
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._events.close()
        self._samples.close()
        self._lock.release()

    def log(self, kind: str, /, *, step: int, **values: Any) -> None:
        """Append one event with its wall time (seconds since 1970) to events.jsonl.

        Kind "train" is one training step; other kinds ("evaluate", "checkpoint", ...) are free. Tensors and NumPy
        scalars are converted; NaN and infinities are kept (see `jsonl.to_json`).
        Raises: CheckpointError when the line cannot be written; RecordError for a value that has no JSON, or one named
        "time" or "kind".
        """
        if taken := values.keys() & {"time", "kind"}:
            raise RecordError(f"every event has a {taken.pop()!r} of its own: give the logged value another name")
        self._events.append({"time": time.time(), "kind": kind, "step": step, **values})

    def write_recipe(self, recipe_toml: str) -> None:
        """Replace recipe.toml, whole or not at all: a resumed run may have new settings."""
        write_text(self.recipe_path, recipe_toml)

    def log_resume(self, step: int) -> None:
        """Mark that the run goes on from the end of this step: what the logs hold of later steps no longer stands."""
        for lines in (self._events, self._samples):
            lines.append({"time": time.time(), "kind": "resume", "step": step})

    def log_samples(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        extras: Mapping[str, Sequence[Any]] | None = None,
        *,
        kind: str = "sample",
    ) -> None:
        """Append one line a rollout to samples.jsonl: prompt, text, tokens, actions, log-probabilities, rewards.

        kind: "sample" for a training step, "held_out" for an evaluation.
        extras holds one entry a rollout under each name: `{"advantages": batch.split_rows(advantages), ...}`.
        Raises: RecordError when an extra has not one entry a rollout; CheckpointError when the file cannot be written.
        """
        extras = extras or {}
        for name, entries in extras.items():
            if len(entries) != len(rollouts):
                raise RecordError(f"{name!r} has {len(entries)} entries for {len(rollouts)} rollouts at step {step}")
        for index, rollout in enumerate(rollouts):
            row = {name: entries[index] for name, entries in extras.items()}
            self._samples.append({"kind": kind, "step": step, **_sample(rollout), **row})

    # Reading

    def events(self, kind: str | None = None, *, superseded: bool = False) -> Iterator[dict[str, Any]]:
        """Events in the order they were written, each with time, kind, step and its values.

        superseded: also those that a later resume from an earlier step has replaced.
        """
        records = self._events.read()[0]
        for record in records if superseded else standing(records):
            if kind is None or record["kind"] == kind:
                yield record

    def history(self) -> list[dict[str, Any]]:
        """One dict a training step, in order of steps: step, time, and every value logged."""
        newest = {event["step"]: event for event in self.events("train")}
        return [{k: v for k, v in newest[step].items() if k != "kind"} for step in sorted(newest)]

    @property
    def metrics(self) -> dict[str, dict[int, float]]:
        """Every number logged, by name and step: `run.metrics["reward"][10]`, `run.metrics["evaluate/reward"]`.

        Training metrics go by their own name, those of other kinds of event by `kind/name`; alarms are left out, since
        each has a value of another quantity. Read afresh each time.
        """
        metrics: dict[str, dict[int, float]] = {}
        events = [event for event in self.events() if event["kind"] not in ABOUT_THE_FOLDER | {"alarm"}]
        for event in sorted(events, key=lambda event: int(event["step"])):
            prefix = "" if event["kind"] == "train" else f"{event['kind']}/"
            for name, value in event.items():
                if name not in ("time", "step") and isinstance(value, int | float):
                    metrics.setdefault(prefix + name, {})[event["step"]] = value
        return metrics

    def samples(self, step: int | None = None, *, kind: str = "sample") -> list[dict[str, Any]]:
        """Logged samples, of one step or of all: prompt, text, tokens, actions, engine_logprobs, rewards, extras.

        kind: "sample" for those of training, "held_out" for those of evaluations.
        """
        records = [record for record in standing(self._samples.read()[0]) if record["kind"] == kind]
        return [record for record in records if step is None or record["step"] == step]

    @property
    def _has_begun(self) -> bool:
        """True once there is something to lose: a step, a checkpoint, or a model."""
        return bool(self.history() or self.checkpoints() or self.model_path.exists())

    @property
    def damaged_lines(self) -> int:
        """Lines of both logs that cannot be read, as a crash in mid-write leaves; every reader skips them."""
        return self._events.read()[1] + self._samples.read()[1]

    @property
    def last_step(self) -> int:
        """The last step of which an event stands, 0 where there is none."""
        return max((int(event["step"]) for event in self.events()), default=0)

    @property
    def recipe_toml(self) -> str:
        """The recipe as resolved, in TOML."""
        return self.recipe_path.read_text(encoding="utf-8")

    @property
    def recipe_path(self) -> Path:
        """The file of the resolved recipe."""
        return self.folder / "recipe.toml"

    @property
    def events_path(self) -> Path:
        """The log of events."""
        return self.folder / "events.jsonl"

    @property
    def samples_path(self) -> Path:
        """The log of samples."""
        return self.folder / "samples.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model_path(self) -> Path:
        """The folder of the final model, there once training has ended."""
        return self.folder / "model"

    def checkpoints(self) -> list[Path]:
        """The checkpoints' folders, in order of steps."""
        return sorted(self.checkpoints_path.glob("step-*"))

    def load_model(self, **options: Any) -> Any:
        """The final model as `from_pretrained(run.model_path, **options)` gives it, of the class it was saved as.

        Raises: ModelError while the run has none.
        """
        if not (self.model_path / "config.json").is_file():
            raise ModelError(f"{self.folder} has no final model yet: {self.model_path} is written when training ends")
        import transformers

        from upslope.policies.quiet import quiet_transformers

        with quiet_transformers():
            (name,) = transformers.AutoConfig.from_pretrained(self.model_path).architectures
            return getattr(transformers, name).from_pretrained(self.model_path, **options)

    def holder(self) -> Owner | None:
        """The living process that writes the folder, None where there is none."""
        return self._lock.holder()

    def stop(self) -> Owner:
        """Ask the process that writes the run to save and stop after the step in progress; returns that process.

        Raises: CheckpointError when no process writes it, or one on another host does.
        """
        owner = self.holder()
        if owner is None:
            raise CheckpointError(f"no process is training {self.folder}, so there is nothing to stop")
        if not owner.is_here:
            raise CheckpointError(
                f"{self.folder} is trained by process {owner.pid} on {owner.host}: stop it there, by kill {owner.pid}"
            )
        os.kill(owner.pid, signal.SIGTERM)
        return owner

    def __repr__(self) -> str:
        history = self.history()
        lines = [f"Run({str(self.folder)!r}): {self._state()}, {len(history)} training steps"]
        if history:
            numbers = {k: v for k, v in history[-1].items() if isinstance(v, int | float) and k not in ("time", "step")}
            lines += [
                f"  {name:<24} {history[0].get(name, float('nan')):>10.4g} -> {v:.4g}" for name, v in numbers.items()
            ]
        lines.append(f"  {len(self.checkpoints())} checkpoints; .metrics, .history(), .samples(), .load_model()")
        return "\n".join(lines)

    def _state(self) -> str:
        holder = self.holder()
        if holder is not None:
            return f"being written by process {holder.pid} on {holder.host}"
        return "finished" if (self.model_path / "config.json").is_file() else "unfinished"


def _sample(rollout: Rollout) -> dict[str, Any]:
    return {
        "prompt_id": rollout.prompt.id,
        "group": rollout.group,
        "sample": rollout.sample,
        "version": rollout.version,
        "prompt": rollout.prompt.content,
        "text": rollout.text,
        "stop_reason": rollout.stop_reason,
        "tokens": rollout.tokens,
        "actions": rollout.actions,
        "positions": rollout.positions,
        "engine_logprobs": rollout.engine_logprobs,
        "rewards": rollout.rewards,
        "metrics": rollout.metrics,
        "failure": rollout.failure,
    }


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is either the old one or the new one, whatever happens."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}; make room or make it writable") from error
