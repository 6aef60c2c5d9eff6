"""The arms of a comparison: models that answer the same prompts, with the same random numbers where they can."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from upslope.engines.choice import engine_for
from upslope.errors import DataError, ModelError
from upslope.evaluation.control import centred
from upslope.evaluation.evaluate import policy_to_sample, source_and_recipe
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling, warp
from upslope.recipe import Recipe
from upslope.records import Prompt, Rollout, collate
from upslope.report.run import Run
from upslope.stopwatch import stopwatch

Model = str | Path | Run
_CONTROL_ACTIONS = 256
"""Actions whose distributions over the whole vocabulary are held at a time."""


class Arm:
    """A model that answers prompts, and what that took: tokens (actions), and seconds, noise_s of them in drawing.

    model: a run, a model folder, a hub id or an embedded name; kind is that of a model that is no run. critic: the kind
    of critic to load with it, where it is a run.
    Raises: ModelError where it cannot be loaded.
    """

    def __init__(self, model: Model, *, kind: str, labels: Sequence[str], critic: str | None = None, seed: int) -> None:
        source, self.recipe = source_and_recipe(model)
        self.name = name_of(model)
        settings = self.recipe or Recipe.resolve({"model": {"kind": kind}})
        self.policy = policy_to_sample(source, settings, labels=labels, critic=critic, seed=seed)
        self._engine = engine_for(self.policy, settings.engine.model_dump())
        self._engine.load(self.policy, version=0)
        self.seed = seed
        self.tokens, self.seconds, self.noise_s = 0, 0.0, 0.0

    def answer(
        self, prompts: Sequence[Prompt], *, samples: int, sampling: Sampling, seed: int | None = None
    ) -> list[Rollout]:
        """So many rollouts of every prompt, in order; by the arm's own seed unless another is given."""
        started = time.perf_counter()
        with stopwatch() as spans:
            encoded = [self.policy.encode(prompt) for prompt in prompts]
            drawn_by = self.seed if seed is None else seed
            rollouts = self._engine.sample(encoded, group_size=samples, sampling=sampling, seed=drawn_by)
        self.seconds += time.perf_counter() - started
        self.noise_s += spans.get("sample", 0.0)
        self.tokens += sum(len(rollout.actions) for rollout in rollouts)
        return rollouts

    def branch(
        self, rollouts: Sequence[Rollout], kept: Sequence[int], *, num_branches: int, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """So many new ends of every rollout after its first kept[i] actions, in order; see engines.engine."""
        started = time.perf_counter()
        branches = self._engine.branch(rollouts, kept, num_branches=num_branches, sampling=sampling, seed=seed)
        self.seconds += time.perf_counter() - started
        self.tokens += sum(len(branch.actions) - kept[branch.group] for branch in branches)
        return branches

    def every_answer(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Rollout]:
        """Every answer to every prompt, in order. Raises: ModelError where they are too many."""
        started = time.perf_counter()
        encoded = [self.policy.encode(prompt) for prompt in prompts]
        answers = self._engine.every_answer(encoded, sampling=sampling)
        self.seconds += time.perf_counter() - started
        return answers


def name_of(model: Model) -> str:
    """What a model is called in results: its folder or name."""
    return str(model.folder if isinstance(model, Run) else model)


def same_actions(a: Policy, b: Policy) -> bool:
    """Whether an action's number means the same to both: one list of labels, or one tokenizer."""
    labels = [getattr(policy, "labels", None) for policy in (a, b)]
    if labels != [None, None]:
        return labels[0] == labels[1]
    vocabularies = [getattr(getattr(policy, "tokenizer", None), "get_vocab", None) for policy in (a, b)]
    known = [vocabulary() for vocabulary in vocabularies if vocabulary is not None]
    return len(known) == 2 and known[0] == known[1]


class Critic:
    """f(s, a) = log p_model(a|s) - log p_base(a|s): what training made likelier is what it found to be good.

    A critic of whole vocabularies at the price of two forwards: where rewards are regularised by the KL to the base,
    the log-ratio is, up to the coefficient, the trained policy's own optimal advantage.
    Source: Rafailov et al. 2024, arXiv:2404.12358, eq. 7.
    """

    def __init__(self, model: Policy, base: Policy) -> None:
        self._model, self._base = model, base

    @torch.no_grad()
    def controls(self, rollouts: Sequence[Rollout], policy: Policy, *, sampling: Sampling) -> list[float]:
        """sum_t f(s_t, a_t) - sum_b pi(b|s_t) f(s_t, b) of every rollout that policy sampled: 0 in the mean.

        0 of a rollout without actions. Raises: ModelError where the critic chooses from other actions.
        """
        found = [0.0] * len(rollouts)
        for rows in _pieces(rollouts):
            batch = collate([rollouts[row] for row in rows])[0].to(policy.device)
            known = {id(p): p for p in (policy, self._model, self._base)}
            logits = {key: torch.cat([chunk.float() for chunk in p.distributions(batch)]) for key, p in known.items()}
            own, up, down = (logits[id(p)] for p in (policy, self._model, self._base))
            if not own.shape == up.shape == down.shape:
                raise ModelError(f"the control chooses from {up.shape[1]} actions and the model from {own.shape[1]}")
            ratios = up.log_softmax(1) - down.log_softmax(1)
            control = centred(ratios, warp(own, sampling).log_softmax(1), batch.actions)
            for row, values in zip(rows, batch.split_rows(control), strict=True):
                found[row] = float(values.sum())
        return found


def _pieces(rollouts: Sequence[Rollout]) -> Iterator[list[int]]:
    """Rows that have actions, a few at a time."""
    rows: list[int] = []
    held = 0
    for row, rollout in enumerate(rollouts):
        if not rollout.actions or rollout.failure == "non-finite logits":
            continue
        if rows and held + len(rollout.actions) > _CONTROL_ACTIONS:
            yield rows
            rows, held = [], 0
        rows.append(row)
        held += len(rollout.actions)
    if rows:
        yield rows


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
