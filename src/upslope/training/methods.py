"""The methods: what loop each has, what it learns from, what it keeps beside the policy, and what evaluates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from upslope.evaluation.metrics import Measurement
from upslope.policies.policy import Policy
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.tasks import Task
from upslope.training import adversarial, inverse, policy_gradient, preference, reward_model, supervised
from upslope.training.judged import judged_rows
from upslope.training.session import Session

LOOPS: Mapping[str, Callable[[Session], None]] = {
    "inverse": inverse.train,
    "policy_gradient": policy_gradient.train,
    "preference": preference.train,
    "reward_model": reward_model.train,
    "supervised": supervised.train,
}
"""The loop of each method; of an adversarial recipe it is `adversarial.train`."""


def loop_of(recipe: Recipe) -> Callable[[Session], None]:
    """The loop of a recipe."""
    return adversarial.train if recipe.adversarial else LOOPS[recipe.method]


def by_policy_gradient(recipe: Recipe) -> bool:
    """Whether the policy learns as [algorithm] says."""
    return recipe.method == "policy_gradient" or recipe.adversarial


def needs_reference(recipe: Recipe) -> bool:
    """Whether the recipe's method keeps the model that training starts from, frozen."""
    if recipe.method == "preference":
        return recipe.preference.needs_reference
    if recipe.method == "inverse" and not recipe.adversarial:  # to tell what demonstrations have that its samples lack
        return recipe.evaluation.every_steps is not None
    return by_policy_gradient(recipe) and recipe.algorithm.needs_reference


def samples(recipe: Recipe) -> bool:
    """Whether the recipe's method learns from what its policy writes."""
    return by_policy_gradient(recipe) or (recipe.method == "preference" and recipe.preference.pairs != "data")


def measured_by(recipe: Recipe, task: Task) -> Callable[[Session], Measurement] | None:
    """What evaluates the model where it is not the task's metric of samples: accuracy on held-out pairs."""
    if recipe.method == "reward_model":
        return reward_model.measure
    if recipe.method == "inverse" and not task.terms:
        return adversarial.measure if recipe.adversarial else inverse.measure
    return preference.measure if recipe.method == "preference" and not task.terms else None


def given_check(recipe: Recipe, policy: Policy) -> Callable[[Prompt], None]:
    """A check of a prompt: can every completion that is learned from be? It raises DataError naming the prompt."""
    column = None
    if recipe.method == "supervised":
        column = recipe.supervised.completion
    elif recipe.method == "inverse":
        column = recipe.inverse.demonstrated
    elif recipe.method == "preference" and recipe.preference.pairs == "self_play":
        column = recipe.preference.preferred
    judged = recipe.method == "reward_model" or (recipe.method == "preference" and recipe.preference.pairs == "data")

    def check(prompt: Prompt) -> None:
        if column is not None:
            supervised.demonstration(policy, prompt, column=column, group=0)
        elif judged:
            judged_rows(policy, prompt)

    return check
