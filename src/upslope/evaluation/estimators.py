"""Which advantage estimator is near the truth: on training prompts, held-out ones, another task, a shifted policy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.algorithm import AlgorithmSettings
from upslope.errors import DataError, RecipeError
from upslope.estimators import row_starts
from upslope.evaluation.advantage_error import Truth, agreements
from upslope.evaluation.arms import Arm, clusters_of, same_actions, shuffled
from upslope.evaluation.branching import Decisions, decide
from upslope.evaluation.estimates import (
    CRITIC,
    LAMS,
    MOST_ACTIONS,
    N_STEP,
    OTHERS,
    Estimate,
    Heads,
    estimate,
    fit,
    gae_name,
    read,
)
from upslope.evaluation.estimator_report import HELD_OUT, TRAINING, EstimatorReport, Fit, Judged, Place, placed
from upslope.evaluation.sources import Model, name_of, sampling_of, source_and_recipe, task_to_evaluate
from upslope.policies.loading import CRITIC_FILE
from upslope.policies.sampling import Sampling
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.rewards import Scorer
from upslope.tasks import Task
from upslope.tasks.prompts import usable

_FITTED_ON = 4  # times as many prompts as a place has
_SHIFT = 1.5  # times the temperature, of the shifted policy where no model is given


@dataclass(frozen=True, slots=True)
class _Judge:
    """What all places share."""

    arm: Arm
    recipe: Recipe
    critic: bool
    heads: Heads
    reference: str
    rows: int
    branches: int
    seed: int

    def place(
        self, name: str, prompts: Sequence[Prompt], sampler: Arm, scorer: Scorer, *, sampling: Sampling, number: int
    ) -> Place:
        """The estimators on rows that sampler writes to these prompts; places of another number share no luck."""
        gamma = self.recipe.algorithm.gamma
        decisions = decide(
            sampler,
            scorer,
            prompts,
            clusters_of(prompts, None),
            rows=self.rows,
            branches=self.branches,
            sampling=sampling,
            gamma=gamma,
            seed=self.seed + number,
        )
        problem = _problem(decisions.truth)
        judged: tuple[Judged, ...] = ()
        if problem is None:
            rollouts = decisions.rollouts
            readings = read(self.arm.policy, sampler.policy, rollouts, sampling=sampling, critic=self.critic)
            own = self.recipe.algorithm
            found = estimate(readings, self.heads, gamma=gamma, lams=sorted({*LAMS, own.lam}), n_step=_n_step(own))
            judged = _judged(found, decisions, readings.batch.num_actions, self.reference, self.seed)
        return placed(name, len(prompts), decisions, judged, problem)


def judge_estimators(
    model: Model,
    task: Task | str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    other: Task | str | None = None,
    shifted: Model | None = None,
    num_prompts: int = 32,
    rows: int = 4,
    branches: int = 16,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    kind: str = "causal",
    seed: int = 0,
) -> EstimatorReport:
    """How far advantage estimators are from the true advantages of a model's policy, and what each costs.

    model, task, options, kind: as in evaluate.evaluate. Sampled at the run's temperature unless another is given,
    num_prompts prompts a place, `rows` rows each; of all their actions as many as there are rows, whose true advantages
    are measured by `branches` new ends after the action and as many before it. Heads are fitted on four times as many
    training prompts. other: a task to try them on besides; shifted: a model whose rows they are tried on, by default
    the same one at 1.5 times the temperature.
    Raises: RecipeError for settings that leave nothing to estimate; DataError where every advantage is 0 at every
    place, or there are fewer than two prompts to fit on; ModelError.
    """
    _check(rows, branches, temperature)
    source, recipe = source_and_recipe(model)
    task = task_to_evaluate(recipe, task, options or {})
    critic, reason = _critic_of(Path(source), recipe)
    settings = recipe or Recipe.resolve({"model": {"kind": kind}})
    arm = Arm(model, kind=settings.model.kind, labels=task.labels, critic=critic, seed=seed)
    sampling = _sampling(settings, temperature, max_new_tokens)
    another = None if other is None else task_to_evaluate(None, other, {})
    moved = _shifted(arm, shifted, settings, task, sampling, seed)
    seen = _some(arm, task, task.prompts, _FITTED_ON * num_prompts, seed)
    with _scorer(task, settings) as scorer:
        heads, fitted = _fit(arm, scorer, seen, settings, rows=rows, sampling=sampling, seed=seed)
        judge = _Judge(arm, settings, critic is not None, heads, _reference(settings, critic), rows, branches, seed)
        places = _places(judge, task, scorer, seen, num_prompts, other=another, shifted=moved, sampling=sampling)
    if all(place.problem for place in places):
        raise DataError(f"no estimator can be judged: on {places[0].name}, {places[0].problem}")
    return EstimatorReport(
        name_of(model),
        task.name,
        settings.algorithm.gamma,
        sampling.temperature,
        rows,
        branches,
        judge.reference,
        fitted,
        tuple(places),
        {} if critic else {CRITIC: reason},
        _notes(settings, places),
    )


def _places(
    judge: _Judge,
    task: Task,
    scorer: Scorer,
    seen: Sequence[Prompt],
    count: int,
    *,
    other: Task | None,
    shifted: tuple[str, Arm, Sampling],
    sampling: Sampling,
) -> list[Place]:
    """So many training prompts, held-out ones where there are any, of another task, and under a shifted policy."""
    arm, seen = judge.arm, seen[:count]
    places = [judge.place(TRAINING, seen, arm, scorer, sampling=sampling, number=1)]
    held_out = _some(arm, task, task.eval_prompts, count, judge.seed)
    if held_out:
        places.append(judge.place(HELD_OUT, held_out, arm, scorer, sampling=sampling, number=2))
    if other is not None:
        prompts = _some(arm, other, other.eval_prompts or other.prompts, count, judge.seed)
        with _scorer(other, judge.recipe) as its_own:
            places.append(judge.place(f"task {other.name}", prompts, arm, its_own, sampling=sampling, number=3))
    name, sampler, moved = shifted
    places.append(judge.place(name, held_out or seen, sampler, scorer, sampling=moved, number=4))
    return places


def _scorer(task: Task, recipe: Recipe) -> Scorer:
    return Scorer(task.terms, timeout_s=recipe.reward.timeout_s, isolation=recipe.reward.isolation)


def _sampling(recipe: Recipe, temperature: float | None, max_new_tokens: int | None) -> Sampling:
    """The recipe's own distribution, but for what is given."""
    own = sampling_of(recipe)
    return dataclasses.replace(
        own,
        temperature=own.temperature if temperature is None else temperature,
        max_new_tokens=max_new_tokens or own.max_new_tokens,
    )


def _check(rows: int, branches: int, temperature: float | None) -> None:
    if temperature == 0.0:
        raise RecipeError("at temperature 0 only one action is ever taken, so there are no advantages; give another")
    if branches < 4 or branches % 2:
        raise RecipeError(f"branches is {branches}; it must be even, and 4 at least, for its halves are compared")
    if rows < 2:
        raise RecipeError("rows is 1; it must be 2 at least, for a row is compared with the others of its prompt")


def _critic_of(source: Path, recipe: Recipe | None) -> tuple[str | None, str]:
    """The kind of critic that lies beside a run's model, or why there is none."""
    if recipe is None:
        return None, "the model is no run"
    if not (source / CRITIC_FILE).is_file():
        return None, "the run trained no critic"
    if recipe.model.lora is not None and recipe.model.critic == "separate":
        return None, "the run's critic is adapters on a trunk of its own, which the merged model lacks"
    return recipe.model.critic, ""


def _reference(recipe: Recipe, critic: str | None) -> str:
    """The name of the estimator that the recipe trains with; else of that which needs rows alone."""
    settings = recipe.algorithm
    if critic is None or settings.credit not in ("gae", "n_step"):
        return OTHERS
    own = gae_name(settings.lam) if settings.credit == "gae" else f"{_n_step(settings)}-step"
    return f"{own}, {CRITIC}"


def _n_step(settings: AlgorithmSettings) -> int:
    return settings.n_step if settings.credit == "n_step" else N_STEP


def _some(arm: Arm, task: Task, prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """So many prompts that the model can read, drawn at random, those of one text together."""
    read_, _ = usable(list(prompts), arm.policy.encode, strict=task.strict)
    groups = shuffled(read_, clusters_of(read_, None), seed=seed)
    return [prompt for group in groups for prompt in group][:count]


def _fit(
    arm: Arm, scorer: Scorer, prompts: Sequence[Prompt], recipe: Recipe, *, rows: int, sampling: Sampling, seed: int
) -> tuple[Heads, Fit]:
    """Heads on fresh rows to these prompts, on as many of the first ones as there is room for."""
    started = time.perf_counter()
    sampled = arm.answer(prompts, samples=rows, sampling=sampling, seed=seed)
    scored = [rollout for rollout in scorer.score(sampled) if not rollout.failure]
    spent = time.perf_counter() - started
    total = np.cumsum([len(rollout.actions) for rollout in scored])
    kept = [rollout for rollout, before in zip(scored, total, strict=True) if before <= MOST_ACTIONS]
    used = len({rollout.group for rollout in kept})
    if used < 2:
        raise DataError(f"heads are fitted on the rows of 2 training prompts at least, but only {used} could be scored")
    readings = read(arm.policy, arm.policy, kept, sampling=sampling, critic=False)
    gamma = recipe.algorithm.gamma
    heads = fit(readings, gamma=gamma, seed=seed)
    value, advantage = heads.ridges
    count = len(readings.batch.actions)
    return heads, Fit(used, count, spent, heads.seconds, value.value, advantage.advantage)


def _shifted(
    arm: Arm, model: Model | None, recipe: Recipe, task: Task, sampling: Sampling, seed: int
) -> tuple[str, Arm, Sampling]:
    """The shifted policy's name, arm and sampling."""
    if model is None:
        hotter = _SHIFT * sampling.temperature
        return f"at temperature {hotter:g}", arm, dataclasses.replace(sampling, temperature=hotter)
    other = Arm(model, kind=recipe.model.kind, labels=task.labels, seed=seed)
    if not same_actions(arm, other):
        raise RecipeError(f"{other.name} has another tokenizer or other labels, so that its rows cannot be judged")
    return f"rows of {other.name}", other, sampling


def _problem(truth: Truth) -> str | None:
    """Why nothing can be said with such a truth, if so."""
    if len(np.unique(truth.clusters)) < 2:
        return "there is one prompt only, and an interval needs two"
    if not truth.advantages.any():
        return "every branch earned the same, so that every advantage is 0"
    if truth.spread <= 0:
        return "the branches' noise hides what advantages there may be; take more branches or prompts"
    return None


def _judged(
    found: Sequence[Estimate], decisions: Decisions, num_actions: Any, reference: str, seed: int
) -> tuple[Judged, ...]:
    chosen = row_starts(num_actions).numpy()[decisions.row] + decisions.step
    table = np.stack([one.advantages.numpy()[chosen] for one in found])
    index = [one.name for one in found].index(reference)
    total = len(found[0].advantages)
    return tuple(
        Judged(one.name, one.family, one.head, one.lam, agreement, 1_000 * one.seconds / total)
        for one, agreement in zip(found, agreements(table, decisions.truth, reference=index, seed=seed), strict=True)
    )


def _notes(recipe: Recipe, places: Sequence[Place]) -> tuple[str, ...]:
    found = []
    if HELD_OUT not in [place.name for place in places]:
        found.append("the task has no held-out prompts, so generalisation to them is not judged")
    if recipe.algorithm.kl == "reward" and recipe.algorithm.kl_coef:
        found.append(
            "the true advantages are of the task's reward; the run charged the KL to the reference besides, which its "
            "critic has learned to expect"
        )
    return (*found, *(note for place in places for note in place.notes))
