"""Which of two models is better on a task, by how much, and how sure that is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from upslope.errors import DataError, RecipeError
from upslope.evaluation.answers import Answers
from upslope.evaluation.arms import Arm, Critic, Model, clusters_of, name_of, same_actions, shuffled
from upslope.evaluation.comparison import Comparison, Look
from upslope.evaluation.evaluate import sampling_of, source_and_recipe, task_to_evaluate
from upslope.evaluation.paired import Difference, Method, difference
from upslope.evaluation.sequences import FIRST_LOOK
from upslope.policies.sampling import Sampling
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.rewards import Scorer
from upslope.tasks import Task

_OTHER_NUMBERS = 1 << 40
"""Added to the seed of a model that cannot share its random numbers with the first."""


def compare(
    a: Model,
    b: Model,
    task: Task | str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    metric: str | None = None,
    num_prompts: int | None = None,
    samples: int = 1,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    kind: str = "causal",
    cluster: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    look_every: int | None = None,
    method: Method | None = None,
    bounds: tuple[float, float] | None = None,
    control: Model | None = None,
    seed: int = 0,
) -> Comparison:
    """J(b) - J(a) on a task's held-out prompts, with an interval, a verdict on b, and what it cost.

    a, b: runs, model folders, hub ids or embedded names; kind is that of models that are no runs. Both answer the same
    prompts, `samples` times each, decoded alike (temperature 0 is greedy); where their actions mean the same they share
    random numbers. The task is by default that of a, or else of b, where it is a run. metric: the task's own, "reward"
    or a reward term's name. cluster: a column whose equal values hang together (a document); by default a prompt stands
    for itself, and repeats of one text are one cluster.

    method, margin, bounds: see paired.difference. Without look_every all num_prompts prompts are answered, for a t
    interval. With it the models answer so many prompts at a time, in an order that seed decides, and stop as soon as
    there is a verdict; the interval is then a confidence sequence. control: a model whose log-ratio to a serves as
    critic (see arms.Critic), b itself or an earlier step, say; of use at temperatures above 0. Both models are held in
    memory at once.

    Raises: ModelError where a model cannot be loaded, DataError where there is nothing to take an interval of,
    RecipeError for settings at odds, RewardError where nothing could be scored.
    """
    method = method or ("t" if look_every is None else "asymptotic")
    _check(method, look_every, samples, temperature, control)
    arms, task, settings = load_arms((a, b), task, options or {}, kind=kind, seed=seed)
    prompts = held_out(task, num_prompts)
    critic = None if control is None else _critic(control, arms, kind, task)
    sampling = sampling_for(settings, temperature=temperature, max_new_tokens=max_new_tokens)
    clusters = clusters_of(prompts, cluster)
    groups = shuffled(prompts, clusters, seed=seed)
    how = {"method": method, "confidence": confidence, "margin": margin, "bounds": bounds, "seed": seed}
    with Scorer(task.terms, timeout_s=settings.reward.timeout_s, isolation=settings.reward.isolation) as scorer:
        answers = Answers(
            arms,
            scorer,
            metric=metric or task.metric_name,
            samples=samples,
            sampling=sampling,
            clusters=clusters,
            critic=critic,
        )
        found, looks = _looked(answers, groups, look_every, **how)
    return _result(answers, found, looks, task=task.name)


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


def _result(answers: Answers, found: Difference, looks: tuple[Look, ...], *, task: str) -> Comparison:
    a, b = answers.arms
    pairs = answers.pairs(0, 1)
    return Comparison(
        names=(a.name, b.name),
        task=task,
        metric=answers.metric,
        means=(float(pairs.a.mean()), float(pairs.b.mean())),
        difference=found,
        looks=looks,
        common_numbers=answers.shares_numbers,
        num_tokens=a.tokens + b.tokens,
        notes=(*answers.notes(), *found.notes),
        generating_s=a.seconds + b.seconds,
        noise_s=a.noise_s + b.noise_s,
        scoring_s=answers.scoring_s,
        added_s=answers.added_s,
    )


def load_arms(
    models: Sequence[Model], task: Task | str | None, options: Mapping[str, Any], *, kind: str, seed: int
) -> tuple[list[Arm], Task, Recipe]:
    """The models, the task, and the settings that all are sampled by: those of the first that is a run.

    Raises: ModelError where a model cannot be loaded; RecipeError where no task is named.
    """
    recipes = [recipe for _, recipe in map(source_and_recipe, models) if recipe is not None]
    task = task_to_evaluate(recipes[0] if recipes else None, task, options)
    arms = [Arm(model, kind=kind, labels=task.labels, seed=seed) for model in models]
    for index, arm in enumerate(arms):
        if not same_actions(arms[0].policy, arm.policy):
            arm.seed = seed + index * _OTHER_NUMBERS
    return arms, task, recipes[0] if recipes else Recipe.resolve({})


def held_out(task: Task, num_prompts: int | None) -> Sequence[Prompt]:
    """The first prompts held out. Raises: DataError when there is none."""
    prompts: Sequence[Prompt] = task.eval_prompts[:num_prompts]
    if not prompts:
        raise DataError(f"task {task.name!r} has no held-out prompts to compare on")
    return prompts


def sampling_for(settings: Recipe, *, temperature: float, max_new_tokens: int | None) -> Sampling:
    """The settings' own distribution at another temperature and length."""
    sampling = dataclasses.replace(sampling_of(settings), temperature=temperature)
    return sampling if max_new_tokens is None else dataclasses.replace(sampling, max_new_tokens=max_new_tokens)


def batches(groups: Sequence[Sequence[Prompt]], size: int | None, *, first: int) -> Iterator[list[Prompt]]:
    """Whole clusters until there are `size` prompts (all where None), in the first batch `first` clusters at least."""
    batch: list[Prompt] = []
    for number, group in enumerate(groups, 1):
        batch += group
        if size is not None and len(batch) >= size and number >= first:
            yield batch
            batch = []
    if batch:
        yield batch


def _check(method: Method, look_every: int | None, samples: int, temperature: float, control: Model | None) -> None:
    if look_every is not None and method == "t":
        raise RecipeError("a t interval holds for one look only; leave out look_every, or take another method")
    if look_every is not None and look_every < 1:
        raise RecipeError(f"look_every is {look_every}; it must be 1 prompt at least")
    if temperature == 0.0 and samples > 1:
        raise RecipeError(f"at temperature 0 all {samples} samples of a prompt are the same; give a temperature")
    if temperature == 0.0 and control is not None:
        raise RecipeError("at temperature 0 there is no luck for a control to take out; give a temperature")


def _critic(control: Model, arms: Sequence[Arm], kind: str, task: Task) -> Critic:
    """The critic by the control's log-ratio to the first model; a model that is an arm already is not loaded twice."""
    held = next((arm for arm in arms if arm.name == name_of(control)), None)
    arm = held or Arm(control, kind=kind, labels=task.labels, seed=0)
    if not all(same_actions(arm.policy, other.policy) for other in arms):
        raise RecipeError(
            f"the control {arm.name} has another tokenizer than the models, and cannot judge their tokens"
        )
    return Critic(arm.policy, arms[0].policy)
