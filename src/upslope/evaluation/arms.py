"""The arms of a comparison: models that answer the same prompts, with the same random numbers where they can."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from upslope.engines.choice import engine_for
from upslope.engines.engine import Engine
from upslope.errors import DataError, RecipeError
from upslope.evaluation.ensembles import Candidate, Ensemble, averaged, voted
from upslope.evaluation.sources import Model, name_of, policy_to_sample, source_and_recipe
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling
from upslope.recipe import Recipe
from upslope.records import Prompt, Rollout
from upslope.stopwatch import stopwatch

_OTHER_NUMBERS = 1 << 50
"""Added to the seed of each further member of an ensemble: by the same numbers they would say the same."""


class Arm:
    """A model that answers prompts, and what that took: tokens (actions), and seconds, noise_s of them in drawing.

    model: a run, a model folder, a hub id or an embedded name; kind is that of a model that is no run. critic: the kind
    of critic to load with it, where it is a run. engine: another than the policy's own.
    Raises: ModelError where it cannot be loaded.
    """

    def __init__(
        self,
        model: Model,
        *,
        kind: str,
        labels: Sequence[str],
        critic: str | None = None,
        seed: int,
        engine: Engine | None = None,
    ) -> None:
        source, recipe = source_and_recipe(model)
        settings = recipe or Recipe.resolve({"model": {"kind": kind}})
        self.name = name_of(model)
        self.policy = policy_to_sample(source, settings, labels=labels, critic=critic, seed=seed)
        self._own = engine_for(self.policy, settings.engine.model_dump())
        self._engine: Engine = engine or self._own
        for each in {self._own, self._engine}:
            each.load(self.policy, version=0)
        self.seed = seed
        self.tokens, self.seconds, self.noise_s = 0, 0.0, 0.0

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The model's policy."""
        return (self.policy,)

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt as the model reads it. Raises: DataError where it cannot."""
        return self.policy.encode(prompt)

    def cuts(self, prompt: Prompt) -> bool:
        """Whether the model does not read the prompt's end."""
        return self.policy.cuts(prompt)

    def answer(
        self, prompts: Sequence[Prompt], *, samples: int, sampling: Sampling, seed: int | None = None
    ) -> list[Rollout]:
        """So many rollouts of every prompt, in order; by the arm's own seed unless another is given."""
        with self._timed():
            encoded = [self.policy.encode(prompt) for prompt in prompts]
            drawn_by = self.seed if seed is None else seed
            rollouts = self._engine.sample(encoded, group_size=samples, sampling=sampling, seed=drawn_by)
        self.tokens += sum(len(rollout.actions) for rollout in rollouts)
        return rollouts

    def branch(
        self, rollouts: Sequence[Rollout], kept: Sequence[int], *, num_branches: int, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """So many new ends of every rollout after its first kept[i] actions, in order, by the policy's own engine."""
        with self._timed():
            branches = self._own.branch(rollouts, kept, num_branches=num_branches, sampling=sampling, seed=seed)
        self.tokens += sum(len(branch.actions) - kept[branch.group] for branch in branches)
        return branches

    def every_answer(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Rollout]:
        """A rollout for every label of every prompt, in order, with its log-probability; see engine.Engine."""
        with self._timed():
            rollouts = self._engine.every_answer([self.policy.encode(p) for p in prompts], sampling=sampling)
        self.tokens += len(prompts)
        return rollouts

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        with stopwatch() as spans:
            yield
        self.seconds += time.perf_counter() - started
        self.noise_s += spans.get("sample", 0.0)


class EnsembleArm:
    """Models that answer as one; what it took is what all of them took.

    Raises: ModelError where one cannot be loaded, or, once it answers, averages what is not one label a prompt;
    RecipeError where probabilities that mean different things were to be averaged.
    """

    def __init__(self, ensemble: Ensemble, *, kind: str, labels: Sequence[str], seed: int) -> None:
        self.name = ensemble.name
        self.members = [Arm(model, kind=kind, labels=labels, seed=seed) for model in ensemble.members]
        self.seed = seed
        self._by = ensemble.by
        if self._by == "average" and not same_actions(*self.members):
            raise RecipeError(f"{self.name}: probabilities of different labels cannot be averaged; let them vote")

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The members' policies."""
        return tuple(member.policy for member in self.members)

    @property
    def tokens(self) -> int:
        """Of all members together."""
        return sum(member.tokens for member in self.members)

    @property
    def seconds(self) -> float:
        """Of all members together."""
        return sum(member.seconds for member in self.members)

    @property
    def noise_s(self) -> float:
        """Of all members together."""
        return sum(member.noise_s for member in self.members)

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt itself, which all members can read. Raises: DataError where one cannot."""
        for policy in self.policies:
            policy.encode(prompt)
        return prompt

    def cuts(self, prompt: Prompt) -> bool:
        """Whether a member does not read the prompt's end."""
        return any(policy.cuts(prompt) for policy in self.policies)

    def answer(self, prompts: Sequence[Prompt], *, samples: int, sampling: Sampling) -> list[Rollout]:
        """So many rollouts of every prompt, in order."""
        if self._by == "average":
            listed = [member.every_answer(prompts, sampling=sampling) for member in self.members]
            return averaged(prompts, listed, samples=samples, greedy=sampling.greedy, seed=self.seed)
        for place, member in enumerate(self.members):
            member.seed = self.seed + place * _OTHER_NUMBERS
        return voted([member.answer(prompts, samples=samples, sampling=sampling) for member in self.members])


def arm_of(
    model: Candidate, *, kind: str, labels: Sequence[str], seed: int, engine: Engine | None = None
) -> Arm | EnsembleArm:
    """The model, loaded and ready to answer. Raises: as the arms do."""
    if isinstance(model, Ensemble):
        return EnsembleArm(model, kind=kind, labels=labels, seed=seed)
    return Arm(model, kind=kind, labels=labels, seed=seed, engine=engine)


def first_recipe(models: Sequence[Candidate]) -> Recipe | None:
    """The recipe of the first that is a run, or of an ensemble's first member that is one."""
    single = [one for model in models for one in (model.members if isinstance(model, Ensemble) else (model,))]
    return next((recipe for _, recipe in map(source_and_recipe, single) if recipe is not None), None)


def same_actions(*arms: Arm | EnsembleArm) -> bool:
    """Whether an action's number means the same to all: one list of labels, or one tokenizer."""
    policies = [policy for arm in arms for policy in arm.policies]
    labels = [getattr(policy, "labels", None) for policy in policies]
    if any(labels):
        return all(each == labels[0] for each in labels)
    vocabularies = [getattr(getattr(policy, "tokenizer", None), "get_vocab", None) for policy in policies]
    known = [vocabulary() for vocabulary in vocabularies if vocabulary is not None]
    return len(known) == len(policies) and all(each == known[0] for each in known)


def clusters_of(prompts: Sequence[Prompt], column: str | None) -> dict[int, int]:
    """Prompt id -> number of its cluster: what a column says, or else the prompt's own text, as repeats are one.

    Raises: DataError for a prompt without the column.
    """
    numbers: dict[str, int] = {}
    found = {}
    for prompt in prompts:
        if column is not None and column not in prompt.columns:
            raise DataError(f"prompt {prompt.id} has no column {column!r} to take its cluster from")
        name = prompt.text if column is None else repr(prompt.columns[column])
        found[prompt.id] = numbers.setdefault(name, len(numbers))
    return found


def shuffled(prompts: Sequence[Prompt], clusters: Mapping[int, int], *, seed: int) -> list[list[Prompt]]:
    """Clusters of prompts in an order that seed decides, so that those before any stop are a random sample of them."""
    groups: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(clusters[prompt.id], []).append(prompt)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    members = list(groups.values())
    return [members[index] for index in order]
