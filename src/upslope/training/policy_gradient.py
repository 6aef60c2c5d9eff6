"""The policy-gradient loop: prompts -> rollouts -> rewards -> advantages -> updates. Every preset is this loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from upslope import estimators, losses
from upslope.algorithm import AlgorithmSettings
from upslope.errors import RecordError
from upslope.estimators import AdaptiveKL, FixedKL, RunningMean
from upslope.records import Batch, Rollout, Scores, collate
from upslope.rewards.rules import repetition_penalty
from upslope.stopwatch import span
from upslope.training.credit import assign_credit
from upslope.training.gather import Experience, gather
from upslope.training.optimizer import set_learning_rate
from upslope.training.seeds import generator
from upslope.training.session import Session, TrainState
from upslope.training.timing import time_metrics, timed
from upslope.training.update import Piece, UpdateReport, pieces, update

_REPEATED = repetition_penalty()


def train(session: Session) -> None:
    """Train until the session is over. Each step is a pure function of the weights, the optimiser and session.state."""
    while session.settle():
        step = session.state.step + 1
        with timed() as seconds:
            with session.interrupts.allowed():
                experience = gather(session, step=step)
            session.rest_engine()
            state = dataclasses.replace(session.state, step=step, position=experience.position)
            state, metrics = attempt(session, experience, state)
            session.load_engine(step)
        metrics = (
            describe(experience, expected=session.recipe.algorithm.expected, metric=session.task.metric_name)
            | metrics
            | time_metrics(seconds, token_counts(session, experience, metrics))
        )
        state = dataclasses.replace(
            state,
            bad_steps=state.bad_steps + 1 if metrics.get("skipped") else 0,
            train_s=state.train_s + sum(seconds.values()),
        )
        session.finish_step(state, metrics)


def attempt(session: Session, experience: Experience, state: TrainState) -> tuple[TrainState, dict[str, float | str]]:
    """One step's learning where there is something to learn from; else the state as it is, and what was wrong."""
    if not experience.rollouts:
        problem = f"no usable sample: {dict(experience.dropped)}"
        return state, {"skipped": int(experience.failed), "problem": problem}
    try:
        return learn(session, experience, state)
    except RecordError as error:  # a non-finite log-probability, value or reward, found before any update
        return state, {"skipped": 1, "problem": str(error)}


def learn(session: Session, experience: Experience, state: TrainState) -> tuple[TrainState, dict[str, float | str]]:
    """One step's learning from its experience: (state with KL coefficient and running mean, metrics)."""
    settings = session.recipe.algorithm
    rollouts = learned_from(session, experience)
    if not rollouts:
        return state, {"skipped": 1, "problem": "every row was cut and algorithm.overlong is 'mask'"}
    batch, _ = collate(rollouts)
    batch, scores = rescore(session, batch.to(session.policy.device))
    batch, metrics = charge_kl(session, batch, state.kl_coef)
    steered = _steer_kl(session, state, metrics, batch.num_rows)
    credit = assign_credit(batch, settings, RunningMean(state.running_mean, state.running_weight))
    batch = batch.replace(advantages=credit.advantages, returns=credit.returns)
    _log_samples(session, rollouts, batch)
    metrics |= optimise(session, batch, state, scores)
    mean = credit.running_mean
    return dataclasses.replace(steered, running_mean=mean.mean, running_weight=mean.weight), metrics


def learned_from(session: Session, experience: Experience) -> list[Rollout]:
    """The rollouts that enter the update: cut ones do not where algorithm.overlong is "mask"."""
    return [r for r in experience.rollouts if r.terminated or session.recipe.algorithm.overlong != "mask"]


def _steer_kl(session: Session, state: TrainState, metrics: Mapping[str, float | str], num_rows: int) -> TrainState:
    """The state with the KL coefficient of the next step, where an adaptive controller holds a target."""
    settings = session.recipe.algorithm
    if "kl_row" not in metrics:
        return state
    controller: FixedKL | AdaptiveKL = FixedKL(state.kl_coef)
    if settings.kl_target is not None:
        controller = AdaptiveKL(state.kl_coef, settings.kl_target, settings.kl_horizon)
    return dataclasses.replace(state, kl_coef=controller.update(float(metrics["kl_row"]), num_rows).coef)


def rescore(session: Session, batch: Batch) -> tuple[Batch, Scores | None]:
    """The batch with what must be known before the update: old log-probabilities, the critic's values, the reference.

    Exactly on-policy steps that need no values skip the pass: the update's own log-probabilities are then the old ones.
    Where one that needs them takes a single update in a single micro-batch, its pass serves the update too: the scores
    are returned, with their graph.
    """
    settings = session.recipe.algorithm
    once, scores = settings.epochs * settings.minibatches == 1, None
    cut = list(pieces(session.policy, batch, max_tokens=session.recipe.training.micro_batch_tokens))
    if not once or settings.needs_critic or settings.kl == "reward":
        keep = once and len(cut) == 1
        with span("score"), torch.set_grad_enabled(keep):
            batch, scores = _score_into(session, batch, cut, entropy=keep)
        scores = scores if keep else None
    if settings.needs_reference:
        with span("reference"), torch.no_grad():
            batch = _refer(session, batch, cut)
    return batch, scores


def _score_into(session: Session, batch: Batch, cut: Sequence[Piece], *, entropy: bool) -> tuple[Batch, Scores]:
    """The batch with old log-probabilities and, with a critic, values; and the scores of the last piece."""
    settings = session.recipe.algorithm
    logprobs = torch.zeros(len(batch.actions), device=batch.actions.device)
    values, bootstrap = torch.zeros_like(logprobs), logprobs.new_zeros(batch.num_rows)
    for rows, index, piece in cut:
        scores = session.policy.score(piece, sampling=session.sampling, entropy=entropy, values=settings.needs_critic)
        logprobs[index] = scores.logprobs.detach().float()
        if scores.values is not None and scores.bootstrap is not None:
            values[index], bootstrap[rows] = scores.values.detach(), scores.bootstrap.detach()
    batch = batch.replace(old_logprobs=logprobs)
    if settings.needs_critic:
        if settings.overlong != "bootstrap":  # the score of a cut row is final: nothing follows it
            bootstrap.zero_()
        batch = batch.replace(old_values=values, bootstrap=bootstrap)
    return batch, scores


def _refer(session: Session, batch: Batch, cut: Sequence[Piece]) -> Batch:
    logprobs = torch.zeros(len(batch.actions), device=batch.actions.device)
    with session.policy.reference() as frozen:
        for _, index, piece in cut:
            logprobs[index] = frozen.score(piece, sampling=session.sampling).logprobs.float()
    return batch.replace(ref_logprobs=logprobs)


def charge_kl(session: Session, batch: Batch, coef: float) -> tuple[Batch, dict[str, float | str]]:
    """The batch with the KL charged to its rewards where the settings say so, and the measured KL."""
    settings = session.recipe.algorithm
    if batch.ref_logprobs is None:
        return batch, {}
    policy = batch.engine_logprobs if batch.old_logprobs is None else batch.old_logprobs
    kl = estimators.kl_estimate(policy, batch.ref_logprobs, estimator="k1")
    row_kl = estimators.row_sum(kl, batch.num_actions)
    likelihood = estimators.row_sum(batch.engine_logprobs, batch.num_actions).exp()
    shares = likelihood if settings.expected else torch.ones_like(likelihood)
    metrics: dict[str, float | str] = {
        "kl": float((shares * row_kl).sum() / (shares * batch.num_actions).sum()),
        "kl_row": float((shares * row_kl).sum() / shares.sum()),
        "kl_coef": coef,
    }
    if settings.kl == "reward":
        assert batch.rewards is not None
        batch = batch.replace(rewards=estimators.kl_rewards(batch.rewards, kl, coef=coef))
    return batch, metrics


def optimise(session: Session, batch: Batch, state: TrainState, scores: Scores | None = None) -> dict[str, float | str]:
    """All optimiser steps of one batch; means of what they report, and the gap between engine and trainer.

    scores: see `rescore`.
    """
    recipe, settings = session.recipe, session.recipe.algorithm
    lr = set_learning_rate(session.optimizer, recipe.optimizer, step=state.step, total_steps=recipe.training.steps)
    reports: list[UpdateReport] = []
    gap: dict[str, float] = {} if batch.old_logprobs is None else _gap(batch.old_logprobs, batch.engine_logprobs)
    for piece in minibatches(batch, settings, seed=recipe.training.seed, step=state.step):
        report = update(
            session.policy,
            session.optimizer,
            piece,
            settings,
            sampling=session.sampling,
            kl_coef=state.kl_coef,
            micro_batch_tokens=recipe.training.micro_batch_tokens,
            max_grad_norm=recipe.optimizer.max_grad_norm,
            scores=scores,
        )
        reports.append(report)
        if not gap and not report.skipped:
            gap = _gap(report.logprobs, piece.engine_logprobs)
        if settings.kl_stop is not None and report.values.get("policy_kl", 0.0) > settings.kl_stop:
            break
    skipped = sum(report.skipped for report in reports)
    names = {name: None for report in reports for name in report.values}
    metrics: dict[str, float | str] = {"lr": lr, "updates": len(reports) - skipped, **gap, **_critic_fit(batch)}
    for name in names:
        values = [report.values[name] for report in reports if name in report.values]
        metrics[name] = sum(values) / len(values)
    if skipped:
        metrics |= {"updates_skipped": skipped, "problem": "a loss or gradient was not finite"}
    if skipped == len(reports):
        metrics["skipped"] = 1
    return metrics


def minibatches(batch: Batch, settings: AlgorithmSettings, *, seed: int, step: int) -> Iterator[Batch]:
    """Every epoch's minibatches: groups shuffled and kept whole, or the whole batch where there is one."""
    if settings.minibatches == 1:
        yield from [batch] * settings.epochs
        return
    groups = batch.group.unique()
    for epoch in range(settings.epochs):
        shuffle = generator(seed, "minibatches", step, epoch)
        order = groups[torch.randperm(len(groups), generator=shuffle)]
        for part in order.tensor_split(min(settings.minibatches, len(order))):
            rows = torch.isin(batch.group, part).nonzero()[:, 0]
            yield batch.select(rows)


def _gap(trainer_logprobs: Tensor, engine_logprobs: Tensor) -> dict[str, float]:
    statistics = losses.ratio_statistics(trainer_logprobs, engine_logprobs)
    return {
        "gap_k3": statistics.k3,
        "gap_ess": statistics.effective_sample_size,
        "gap_max": statistics.max_deviation,
    }


def _critic_fit(batch: Batch) -> dict[str, float]:
    """1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for a constant, below 0 for a harmful one."""
    if batch.old_values is None or batch.returns is None or len(batch.returns) < 2:
        return {}
    variance = batch.returns.var()
    unexplained = (batch.returns - batch.old_values).var()
    return {"explained_variance": float(1 - unexplained / variance) if variance > 0 else 0.0}


def describe(experience: Experience, *, expected: bool, metric: str) -> dict[str, float | str]:
    """What the rollouts look like: rewards, lengths, endings, repetition, drops, and time.

    expected: every answer of each prompt is among them and counts as much as it is likely. metric: the task's; where it
    is a term of its own, the reward is held against it.
    """
    rollouts = experience.rollouts
    metrics: dict[str, float | str] = {"samples": len(rollouts), "dropped": sum(experience.dropped.values())}
    metrics |= {f"dropped/{reason}": count for reason, count in experience.dropped.items()}
    metrics |= {"rollout_s": experience.rollout_s, "reward_s": experience.reward_s}
    metrics["tokens_per_s"] = experience.sampled_tokens / max(experience.rollout_s, 1e-9)
    if experience.equal_groups is not None:
        metrics["equal_groups"] = experience.equal_groups
    if not rollouts:
        return metrics
    scores = torch.tensor([rollout.score for rollout in rollouts])
    shares = torch.tensor([math.exp(rollout.engine_logprobs[0]) if expected else 1.0 for rollout in rollouts])
    mean = float((shares * scores).sum() / shares.sum())
    lengths = [len(rollout.actions) for rollout in rollouts]
    metrics |= {
        "reward": mean,
        "reward_std": float(((shares * (scores - mean) ** 2).sum() / shares.sum()).sqrt()),
        "length": sum(lengths) / len(lengths),
        "terminated": sum(rollout.terminated for rollout in rollouts) / len(rollouts),
    }
    written = [rollout.actions for rollout in rollouts if rollout.stop_reason != "action"]
    if written:
        metrics["repetition"] = abs(sum(_REPEATED(completion="", completion_ids=ids) for ids in written)) / len(written)
    for name in {name: None for rollout in rollouts for name in rollout.metrics}:
        if name != "reward":
            having = [(s, r.metrics[name]) for s, r in zip(shares.tolist(), rollouts, strict=True) if name in r.metrics]
            metrics[f"reward/{name}"] = sum(s * value for s, value in having) / sum(s for s, _ in having)
    if f"reward/{metric}" in metrics:
        metrics["gold"] = metrics[f"reward/{metric}"]
    return metrics


def token_counts(session: Session, experience: Experience, metrics: Mapping[str, float | str]) -> dict[str, int]:
    """Tokens that each phase of the step had to compute; rows trained on in several epochs count in each.

    metrics: the step's own; fewer updates than epochs times minibatches were made where algorithm.kl_stop ended it.
    """
    updates = int(metrics.get("updates", 0)) + int(metrics.get("updates_skipped", 0))
    rollouts = learned_from(session, experience)
    passes = updates / max(1, min(session.recipe.algorithm.minibatches, len({rollout.group for rollout in rollouts})))
    return {
        "prefill": experience.prompt_tokens,
        "decode": experience.sampled_tokens,
        "update": round(passes * sum(len(rollout.tokens) for rollout in rollouts)),
    }


def _log_samples(session: Session, rollouts: Sequence[Rollout], batch: Batch) -> None:
    per_action = {
        "old_logprobs": batch.old_logprobs,
        "ref_logprobs": batch.ref_logprobs,
        "values": batch.old_values,
        "advantages": batch.advantages,
        "returns": batch.returns,
    }
    extras = {name: batch.split_rows(packed.cpu()) for name, packed in per_action.items() if packed is not None}
    session.log_samples(session.state.step + 1, rollouts, extras)
