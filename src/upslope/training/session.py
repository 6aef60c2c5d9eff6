"""What every training loop shares: its state, logging, evaluation, checkpoints, and when to stop."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from upslope.engines.engine import Engine
from upslope.errors import CheckpointError, DivergenceError
from upslope.evaluation.metrics import Measurement, measure
from upslope.policies.loading import CRITIC_FILE
from upslope.policies.policy import Policy
from upslope.policies.reward import RewardPolicy
from upslope.policies.sampling import Sampling
from upslope.recipe import Recipe
from upslope.records import Prompt, Rollout
from upslope.report.run import Run
from upslope.report.trackers import Tracker
from upslope.rewards import Scorer
from upslope.tasks import Task
from upslope.training.alarms import Alarm, Alarms
from upslope.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    prune_checkpoints,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from upslope.training.fingerprint import BASE, STEP, fingerprint
from upslope.training.interrupts import Interrupts
from upslope.training.optimizer import is_critic, trainable
from upslope.training.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class TrainState:
    """All that a run remembers beside weights, optimiser and random generators; replaced whole after each step.

    position counts prompts taken from the data; bad_steps counts steps in a row that could not be taken.
    """

    step: int = 0
    position: int = 0
    kl_coef: float = 0.0
    running_mean: float = 0.0
    running_weight: float = 0.0
    bad_steps: int = 0
    evaluated: int = -1
    best: float | None = None
    best_step: int = 0
    stale_evaluations: int = 0
    train_s: float = 0.0


@dataclass
class Session:
    """One training run in progress. Loops call `settle` before each step and `finish_step` after it.

    measured_by: what evaluates the model where it is not the task's metric of samples. discriminator: of adversarial
    imitation; its weights are the policy module's.
    """

    recipe: Recipe
    run: Run
    policy: Policy
    engine: Engine
    task: Task
    scorer: Scorer | None
    optimizer: torch.optim.Optimizer
    sampling: Sampling
    trackers: Sequence[Tracker]
    interrupts: Interrupts
    state: TrainState
    measured_by: Callable[[Session], Measurement] | None = None
    discriminator: RewardPolicy | None = None
    base: str = ""
    stop_reason: str = ""
    alarms: Alarms = field(default_factory=Alarms)
    _saved: int = field(default=-1)
    _engine_step: int | None = field(default=None)
    _encoded: dict[int, Prompt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = self.base or fingerprint(self.policy.module, samples=BASE)
        self.load_engine(self.state.step)

    def seed(self, *purpose: str | int) -> int:
        """The seed of one purpose, decided by training.seed."""
        return derive_seed(self.recipe.training.seed, *purpose)

    def encode(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with their tokens, each encoded once."""
        for prompt in prompts:
            if prompt.id not in self._encoded:
                self._encoded[prompt.id] = self.policy.encode(prompt)
        return [self._encoded[prompt.id] for prompt in prompts]

    def settle(self) -> bool:
        """Do what is due between two steps (evaluation, checkpoint); False when training is over."""
        self.interrupts.check()
        finished = self._finished()
        every = self.recipe.evaluation.every_steps
        if every and self.state.evaluated != self.state.step and (finished or self.state.step % every == 0):
            self._evaluate()
            finished = finished or self._finished()
        every = self.recipe.run.checkpoint_every_steps
        if every and self.state.step and (finished or self.state.step % every == 0):
            self.save()
        return not finished

    def load_engine(self, step: int) -> None:
        """Give the engine the weights as they are after this step."""
        self.engine.load(self.policy, version=step)
        self._engine_step = step

    def rest_engine(self) -> None:
        """Take the engine's memory for the update; it is loaded again before it samples."""
        self.engine.rest()
        self._engine_step = None

    def finish_step(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Log the step and make its state the run's own; the engine holds its weights already.

        Raises: DivergenceError after training.max_bad_steps bad steps in a row, or at the end when all were bad.
        """
        self.state = state
        self.run.log("train", step=state.step, **metrics)
        self._track(state.step, metrics)
        for alarm in self.alarms.update(metrics):
            self._tell(alarm)
        never_learned = state.step >= self.recipe.training.steps and state.bad_steps == state.step
        if state.bad_steps >= self.recipe.training.max_bad_steps or never_learned:
            self.run.log("diverged", step=state.step, bad_steps=state.bad_steps)
            raise DivergenceError(
                f"{state.bad_steps} steps in a row could not be taken (training.max_bad_steps); the last problem: "
                f"{metrics.get('problem', 'unknown')}"
            )

    def _track(self, step: int, values: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)

    def _tell(self, alarm: Alarm) -> None:
        """Put an alarm that begins or ends into the log, and before the trackers as a number and a sentence."""
        begins = alarm.state == "begin"
        self.run.log("alarm", step=self.state.step, **dataclasses.asdict(alarm))
        sentence = f"{alarm.name} {'begins' if begins else 'is over'}: {alarm.text}"
        self._track(self.state.step, {f"alarm/{alarm.name}": int(begins), "alarm": sentence})

    def log_samples(self, step: int, rollouts: Sequence[Rollout], extras: Mapping[str, Sequence[Any]]) -> None:
        """Keep a few samples of a step in the run folder: the best, the worst, and the first ones, in their order."""
        best_first = sorted(range(len(rollouts)), key=lambda index: -rollouts[index].score)
        wanted = dict.fromkeys([*best_first[:1], *best_first[-1:], *range(len(rollouts))])
        kept = sorted(list(wanted)[: self.recipe.run.samples_per_step])
        rows = [rollouts[index] for index in kept]
        columns = {name: [values[index] for index in kept] for name, values in extras.items()}
        self.run.log_samples(step, rows, columns | self._told(rows))

    def _told(self, rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
        """Each action as text, so that a reader of the log needs no tokenizer; and the checksum of the weights that
        wrote the row, where they are those of now."""
        now = fingerprint(self.policy.module, samples=STEP) if rollouts else ""
        return {
            "pieces": [self.policy.pieces(rollout.actions) for rollout in rollouts],
            "weights": [now if rollout.version == self.state.step else None for rollout in rollouts],
        }

    def measure(self) -> Measurement:
        """The task's metric on its held-out prompts, decoded as [evaluation] says; or what the method measures."""
        if self.measured_by is not None:
            return self.measured_by(self)
        assert self.scorer is not None
        if self._engine_step != self.state.step:
            self.load_engine(self.state.step)
        settings = self.recipe.evaluation
        prompts = self.encode(self.task.eval_prompts[: settings.num_prompts])
        sampling = dataclasses.replace(self.sampling, temperature=0.0) if settings.greedy else self.sampling
        with self.interrupts.allowed():
            return measure(
                self.engine,
                prompts,
                self.scorer,
                metric=self.task.metric_name,
                sampling=sampling,
                seed=self.seed("evaluate"),
            )

    def _evaluate(self) -> None:
        started = time.perf_counter()
        measured = self.measure()
        state, settings = self.state, self.recipe.evaluation
        better = state.best is None or measured.mean > state.best + settings.min_gain
        self.state = dataclasses.replace(
            state,
            evaluated=state.step,
            best=measured.mean if better else state.best,
            best_step=state.step if better else state.best_step,
            stale_evaluations=0 if better else state.stale_evaluations + 1,
        )
        values = {"metric": measured.mean, "prompts": len(measured.values), "failed": sum(measured.failures.values())}
        self.run.log(
            "evaluate",
            step=state.step,
            **values,
            evaluate_s=time.perf_counter() - started,
            values={str(prompt): value for prompt, value in measured.values.items()},
        )
        kept = measured.rollouts[: self.recipe.run.samples_per_evaluation]
        self.run.log_samples(state.step, kept, self._told(kept), kind="held_out")
        self._track(state.step, {f"evaluate/{name}": value for name, value in values.items()})
        if better and (settings.patience or (self.recipe.run.checkpoint_every_steps and state.step)):
            self.save()

    def _finished(self) -> bool:
        training, evaluation, state = self.recipe.training, self.recipe.evaluation, self.state
        if evaluation.patience and state.stale_evaluations >= evaluation.patience:
            self.stop_reason = f"the metric has not risen for {state.stale_evaluations} evaluations"
        elif training.max_train_s and state.train_s >= training.max_train_s:
            self.stop_reason = "training.max_train_s is reached"
        elif state.step >= training.steps:
            self.stop_reason = "training.steps is reached"
        return bool(self.stop_reason)

    def save(self) -> None:
        """Checkpoint the state after the last whole step; keeps the newest few and the best."""
        if self._saved == self.state.step:
            return
        parameters = trainable(self.policy.module)
        optimizer, optimizer_state = optimizer_tensors(self.optimizer, parameters.items())
        state = {
            "train": dataclasses.asdict(self.state),
            "optimizer": optimizer_state,
            "random": random_state(),
            "base": self.base,
            "data": _data_digest(self.task),
            "first_kl_coef": self.recipe.algorithm.kl_coef,
        }
        folder = self.run.checkpoints_path
        started = time.perf_counter()
        save_checkpoint(
            folder, self.state.step, tensors={"parameters": parameters, "optimizer": optimizer}, state=state
        )
        self._saved = self.state.step
        keep = {self.state.best_step} if self.state.best is not None else set()
        prune_checkpoints(folder, keep_last=self.recipe.run.keep_last, keep=keep)
        self.run.log("checkpoint", step=self.state.step, save_s=time.perf_counter() - started)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, bit for bit where the recipe is unchanged; settings are the recipe's own, but for
        a KL coefficient that a controller has moved.

        Raises: CheckpointError when the base model, its shapes or the prompts are not those the run started from.
        """
        self._check_parameters(checkpoint)
        if checkpoint.state["data"] != _data_digest(self.task):
            raise CheckpointError(
                f"{checkpoint.path} was trained on other prompts than task {self.task.name!r} now has; give the task "
                "it was started with"
            )
        if checkpoint.state["base"] != self.base:
            raise CheckpointError(
                f"{checkpoint.path} was trained from other weights than model {self.recipe.model.name!r} now holds; "
                "put the original model back"
            )
        self._load_parameters(checkpoint)
        parameters = trainable(self.policy.module)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        load_optimizer(
            self.optimizer, parameters.items(), checkpoint.tensors["optimizer"], checkpoint.state["optimizer"]
        )
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        restore_random_state(checkpoint.state["random"])
        state = TrainState(**checkpoint.state["train"])
        gave_up = state.bad_steps >= self.recipe.training.max_bad_steps
        first_kl_coef = self.recipe.algorithm.kl_coef
        self.state = dataclasses.replace(
            state,
            bad_steps=0 if gave_up else state.bad_steps,
            kl_coef=state.kl_coef if first_kl_coef == checkpoint.state["first_kl_coef"] else first_kl_coef,
        )
        self.alarms = Alarms(metrics for metrics in self.run.history() if metrics["step"] <= state.step)
        self._saved = self.state.step
        self.load_engine(self.state.step)

    def _check_parameters(self, checkpoint: Checkpoint) -> None:
        parameters, saved = trainable(self.policy.module), checkpoint.tensors["parameters"]
        if {name: p.shape for name, p in parameters.items()} != {name: t.shape for name, t in saved.items()}:
            raise CheckpointError(f"{checkpoint.path} holds other parameters than this model; use the run's own recipe")

    def _load_parameters(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.tensors["parameters"]
        with torch.no_grad():
            for name, parameter in trainable(self.policy.module).items():
                parameter.copy_(saved[name])

    def export(self) -> None:
        """Write the final model: the best evaluated one where early stopping was asked for, else the last."""
        best = checkpoint_path(self.run.checkpoints_path, self.state.best_step)
        exported = self.state.step
        if self.recipe.evaluation.patience and self.state.best_step != self.state.step:
            try:
                self._load_parameters(load_checkpoint(best))
                exported = self.state.best_step
            except CheckpointError as error:
                self.run.log("best_is_lost", step=self.state.step, problem=str(error))
                warnings.warn(f"the best model, of step {self.state.best_step}, cannot be read: {error}", stacklevel=2)
        temporary = self.run.folder / ".tmp-model"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self.policy.save(temporary)
            if self.discriminator is not None:
                self.discriminator.save(temporary / "discriminator")
            critic = {name: p.detach() for name, p in trainable(self.policy.module).items() if is_critic(name)}
            if critic:
                save_file(critic, temporary / CRITIC_FILE)
        except (OSError, SafetensorError, ValueError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"the final model cannot be written to {self.run.model_path}: {error}") from error
        shutil.rmtree(self.run.model_path, ignore_errors=True)
        temporary.rename(self.run.model_path)
        self.run.log(
            "finished",
            step=self.state.step,
            model_step=exported,
            reason=self.stop_reason,
            train_s=self.state.train_s,
        )


def _data_digest(task: Task) -> str:
    """A digest of the training prompts, in order, to notice that a resumed run got others."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in task.prompts:
        digest.update(f"{prompt.id}\0{prompt.text}\0".encode())
    return digest.hexdigest()
