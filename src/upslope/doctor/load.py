"""A step's load before it is taken: its rows at full length, cut into micro-batches as training cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upslope.policies.causal import CausalPolicy
from upslope.recipe import Recipe
from upslope.records import Batch, Prompt, Rollout, collate
from upslope.tasks import Task
from upslope.training.judged import judged_rows
from upslope.training.methods import by_policy_gradient, samples
from upslope.training.policy_gradient import minibatches
from upslope.training.seeds import data_order
from upslope.training.supervised import demonstration


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """How many tokens a forward computes, and how many actions it decides."""

    tokens: int
    actions: int


@dataclass(frozen=True, slots=True)
class Load:
    """One step where no row ends before sampling.max_new_tokens (supervised: its demonstrations as they are).

    prompts are the step's and held_out those of an evaluation, all encoded. One optimiser step has at most so many
    micro_batches and computes at most step_tokens, the prompt of a group once.
    """

    prompts: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    rows: int
    largest: MicroBatch
    micro_batches: int
    step_tokens: int


def load_of(recipe: Recipe, policy: CausalPolicy, task: Task) -> Load:
    """The load of the recipe's first step."""
    training, count = recipe.training, recipe.training.prompts_per_step
    order = data_order(training.seed, position=0, count=count, size=len(task.prompts))
    prompts = [policy.encode(task.prompts[index]) for index in order]
    held_out = task.eval_prompts[: recipe.evaluation.num_prompts] if recipe.evaluation.every_steps else ()
    learns = by_policy_gradient(recipe)
    rollouts = _rollouts(prompts, recipe, policy)
    batch, _ = collate(rollouts)
    steps = minibatches(batch, recipe.algorithm, seed=training.seed, step=1) if learns else iter([batch])
    cut = [_micro_batches(part, policy, training.micro_batch_tokens) for part in steps]
    return Load(
        prompts=tuple(prompts),
        held_out=tuple(policy.encode(prompt) for prompt in held_out),
        rows=len(rollouts),
        largest=max((piece for pieces in cut for piece in pieces), key=lambda piece: piece.tokens),
        micro_batches=max(len(pieces) for pieces in cut),
        step_tokens=max(sum(piece.tokens for piece in pieces) for pieces in cut),
    )


def _micro_batches(batch: Batch, policy: CausalPolicy, max_tokens: int) -> list[MicroBatch]:
    pieces = [batch.select(rows) for rows in policy.micro_batches(batch, max_tokens=max_tokens)]
    return [MicroBatch(policy.computed_tokens(piece), len(piece.actions)) for piece in pieces]


def _rollouts(prompts: Sequence[Prompt], recipe: Recipe, policy: CausalPolicy) -> list[Rollout]:
    """A step's rows: those given, and those sampled at full length."""
    if samples(recipe):
        group_size = recipe.algorithm.group_size if by_policy_gradient(recipe) else 2
        return _full_length(prompts, recipe, group_size)
    if recipe.method in ("supervised", "inverse"):
        return _demonstrations(prompts, recipe, policy)
    return [row.replace(group=group) for group, p in enumerate(prompts) for row in judged_rows(policy, p)]


def _full_length(prompts: Sequence[Prompt], recipe: Recipe, group_size: int) -> list[Rollout]:
    """Rows that were cut at max_new_tokens, all of them; what they say does not matter."""
    new = recipe.sampling.max_new_tokens
    return [
        Rollout(
            prompt=prompt,
            group=group,
            sample=sample,
            tokens=(*prompt.tokens, *[0] * new),
            actions=(0,) * new,
            positions=tuple(range(len(prompt.tokens) - 1, len(prompt.tokens) - 1 + new)),
            engine_logprobs=(0.0,) * new,
            text="",
            stop_reason="length",
        )
        for group, prompt in enumerate(prompts)
        for sample in range(group_size)
    ]


def _demonstrations(prompts: Sequence[Prompt], recipe: Recipe, policy: CausalPolicy) -> list[Rollout]:
    column = recipe.supervised.completion if recipe.method == "supervised" else recipe.inverse.demonstrated
    return [demonstration(policy, prompt, column=column, group=group) for group, prompt in enumerate(prompts)]


def in_words(recipe: Recipe, load: Load, *, num_prompts: int) -> str:
    """The arithmetic of a step and of the whole run."""
    training, settings = recipe.training, recipe.algorithm
    if not by_policy_gradient(recipe):
        what = "demonstrations" if recipe.method == "supervised" else "rows"
        step = f"{load.rows} {what} a step, one optimiser step"
        updates = 1
    else:
        updates = settings.epochs * settings.minibatches
        rows = f"{_count(training.prompts_per_step, 'prompt')} x {_count(settings.group_size, 'sample')}"
        cut = f"{_count(settings.epochs, 'epoch')} x {_count(settings.minibatches, 'minibatch')}"
        step = f"{rows} = {load.rows} rows a step; {cut} = {_count(updates, 'optimiser step')}"
    pieces = (
        f"each of up to {_count(load.micro_batches, 'micro-batch')} of at most {training.micro_batch_tokens:,} tokens "
        f"({load.step_tokens:,} tokens an optimiser step, prompts of a group once)"
    )
    passes = training.steps * training.prompts_per_step / num_prompts
    whole = (
        f"{training.steps:,} steps = {training.steps * updates:,} optimiser steps, {passes:.2g} passes over the data"
    )
    return f"{step}, {pieces}; {whole}{_sampled(recipe, load)}"


def _sampled(recipe: Recipe, load: Load) -> str:
    if not samples(recipe):
        return ""
    tokens = recipe.training.steps * load.rows * recipe.sampling.max_new_tokens
    return f", {recipe.training.steps * load.rows:,} rows, at most {tokens:,} sampled tokens"


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("batch") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
