"""One step as training would take it, and taken back: real rollouts, the recipe's own reward, a real update."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope import losses
from upslope.engines.engine import Engine
from upslope.evaluation.sources import sampling_of
from upslope.policies.policy import Policy
from upslope.recipe import Recipe
from upslope.records import Batch, Rollout, collate
from upslope.report.run import Run
from upslope.rewards import Scorer
from upslope.tasks import Task
from upslope.training.gather import gather
from upslope.training.interrupts import Interrupts
from upslope.training.optimizer import make_optimizer, trainable
from upslope.training.policy_gradient import attempt, describe
from upslope.training.session import Session, TrainState
from upslope.training.timing import timed
from upslope.training.update import pieces


@dataclass(frozen=True, slots=True)
class DryStep:
    """What one step would do: its metrics as training logs them, its rollouts, and engine - trainer [M] in nats.

    metrics["policy_kl"] is k3 between the policy before the whole step and after it, in nats an action.
    """

    metrics: Mapping[str, Any]
    rollouts: tuple[Rollout, ...]
    gap: Tensor


def dry_step(recipe: Recipe, policy: Policy, engine: Engine, task: Task, *, prompts: int) -> DryStep:
    """The first step on so many of its prompts. The weights are put back bit for bit; nothing is kept of it.

    Raises: what a first step raises.
    """
    smaller = recipe.training.model_copy(update={"prompts_per_step": prompts})
    recipe = recipe.model_copy(update={"training": smaller})
    with _session(recipe, policy, engine, task) as session, timed() as seconds:
        experience = gather(session, step=1)
        metrics: dict[str, Any] = dict(
            describe(experience, expected=recipe.algorithm.expected, metric=task.metric_name)
        )
        state = dataclasses.replace(session.state, step=1)
        if not experience.rollouts:
            return DryStep(metrics | attempt(session, experience, state)[1], (), torch.zeros(0))
        batch = collate(experience.rollouts)[0].to(policy.device)
        before = _logprobs(session, batch)
        engine.rest()
        with weights_kept(policy.module):
            metrics |= attempt(session, experience, state)[1]
            metrics["policy_kl"] = losses.ratio_statistics(_logprobs(session, batch), before).k3
    return DryStep(metrics | {"step_s": sum(seconds.values())}, experience.rollouts, batch.engine_logprobs - before)


@contextmanager
def _session(recipe: Recipe, policy: Policy, engine: Engine, task: Task) -> Iterator[Session]:
    """A session whose run folder is gone afterwards."""
    reward = recipe.reward
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upslope-doctor-")))
        scorer = Scorer(task.terms, timeout_s=reward.timeout_s, isolation=reward.isolation)
        yield Session(
            recipe=recipe,
            run=stack.enter_context(Run.create(folder / "run", recipe.to_toml())),
            policy=policy,
            engine=engine,
            task=task,
            scorer=stack.enter_context(scorer),
            optimizer=make_optimizer(policy.module, recipe.optimizer),
            sampling=sampling_of(recipe),
            trackers=[],
            interrupts=Interrupts(),
            state=TrainState(kl_coef=recipe.algorithm.kl_coef),
        )


@contextmanager
def weights_kept(module: nn.Module) -> Iterator[None]:
    """A block whose changes to the trainable weights are undone."""
    held = trainable(module)
    before = {name: parameter.detach().clone() for name, parameter in held.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in held.items():
                parameter.copy_(before[name])


@torch.no_grad()
def _logprobs(session: Session, batch: Batch) -> Tensor:
    """The policy's own log-probabilities [M] of the batch's actions, micro-batch by micro-batch."""
    logprobs = torch.zeros(len(batch.actions), device=batch.actions.device)
    for _, index, piece in pieces(session.policy, batch, max_tokens=session.recipe.training.micro_batch_tokens):
        logprobs[index] = session.policy.score(piece, sampling=session.sampling).logprobs.float()
    return logprobs
