"""Which of two models is better on a task, by how much, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Unpack

from upslope.errors import RecipeError
from upslope.evaluation.answers import Answers
from upslope.evaluation.arms import Arm, same_actions
from upslope.evaluation.comparison import Comparison, Look
from upslope.evaluation.critic import Critic
from upslope.evaluation.ensembles import Candidate
from upslope.evaluation.paired import Difference, Method, difference
from upslope.evaluation.sequences import FIRST_LOOK
from upslope.evaluation.sources import Model, name_of
from upslope.evaluation.trial import Asked, Trial, batches
from upslope.records import Prompt
from upslope.tasks import Task


def compare(
    a: Candidate,
    b: Candidate,
    task: Task | str | None = None,
    *,
    margin: float | None = None,
    confidence: float = 0.95,
    look_every: int | None = None,
    method: Method | None = None,
    bounds: tuple[float, float] | None = None,
    control: Model | None = None,
    **asked: Unpack[Asked],
) -> Comparison:
    """J(b) - J(a) on a task's held-out prompts, with an interval, a verdict on b, and what it cost.

    asked: options, metric, num_prompts, samples, max_new_tokens, temperature, kind, cluster and seed, as `trial.Trial`
    has them. method, margin, bounds: see paired.difference. Without look_every all num_prompts prompts are answered,
    for a t interval. With it the models answer so many prompts at a time and stop as soon as there is a verdict; the
    interval is then a confidence sequence. control: a model whose log-ratio to a serves as critic (see critic.Critic),
    b itself or an earlier step, say; of use at temperatures above 0.

    Raises: ModelError where a model cannot be loaded, DataError where there is nothing to take an interval of,
    RecipeError for settings at odds, RewardError where nothing could be scored.
    """
    method = method or ("t" if look_every is None else "asymptotic")
    _check(method, look_every, asked.get("temperature", 0.0), control)
    trial = Trial((a, b), task, **asked)
    critic = None if control is None else _critic(control, trial)
    how = {"method": method, "confidence": confidence, "margin": margin, "bounds": bounds, "seed": trial.seed}
    with trial.scorer() as scorer:
        answers = trial.answers(scorer, critic=critic)
        found, looks = _looked(answers, trial.groups, look_every, **how)
    return _result(answers, found, looks, trial)


def _looked(
    answers: Answers, groups: Sequence[Sequence[Prompt]], look_every: int | None, **how: Any
) -> tuple[Difference, tuple[Look, ...]]:
    """The difference once there is a verdict or no prompt is left, and every look on the way."""
    first = FIRST_LOOK if how["method"] == "asymptotic" else 2
    looks: list[Look] = []
    for batch in batches(groups, look_every, first=first):
        answers.answer(batch)
        if answers.num_clusters < first:
            continue
        started = time.perf_counter()
        found = difference(answers.pairs(0, 1), tuned_for=len(groups), **how)
        answers.added_s += time.perf_counter() - started
        looks.append(Look(found.num_prompts, found.interval, found.verdict))
        if found.verdict != "undecided":
            break
    if not looks:
        found = difference(answers.pairs(0, 1), **how)  # raises, saying what lacks
    return found, tuple(looks)


def _result(answers: Answers, found: Difference, looks: tuple[Look, ...], trial: Trial) -> Comparison:
    a, b = answers.arms
    pairs = answers.pairs(0, 1)
    return Comparison(
        names=(a.name, b.name),
        task=trial.task.name,
        metric=answers.metric,
        means=(float(pairs.a.mean()), float(pairs.b.mean())),
        difference=found,
        looks=looks,
        common_numbers=answers.shares_numbers,
        num_tokens=a.tokens + b.tokens,
        notes=(*trial.notes(), *answers.notes(), *found.notes),
        generating_s=a.seconds + b.seconds,
        noise_s=a.noise_s + b.noise_s,
        scoring_s=answers.scoring_s,
        added_s=answers.added_s,
    )


def _check(method: Method, look_every: int | None, temperature: float, control: Model | None) -> None:
    if look_every is not None and method == "t":
        raise RecipeError("a t interval holds for one look only; leave out look_every, or take another method")
    if look_every is not None and look_every < 1:
        raise RecipeError(f"look_every is {look_every}; it must be 1 prompt at least")
    if temperature == 0.0 and control is not None:
        raise RecipeError("at temperature 0 there is no luck for a control to take out; give a temperature")


def _critic(control: Model, trial: Trial) -> Critic:
    """The critic by the control's log-ratio to the first model; a model that is an arm already is not loaded twice."""
    if any(len(arm.policies) > 1 for arm in trial.arms):
        raise RecipeError("a control judges the tokens of single models; leave it out for an ensemble")
    held = next((arm for arm in trial.arms if arm.name == name_of(control)), None)
    arm = held or Arm(control, kind=trial.kind, labels=trial.task.labels, seed=0)
    if not same_actions(arm, *trial.arms):
        raise RecipeError(
            f"the control {arm.name} has another tokenizer than the models, and cannot judge their tokens"
        )
    return Critic(arm.policies[0], trial.arms[0].policies[0])
