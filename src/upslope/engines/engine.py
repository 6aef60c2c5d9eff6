"""The seam between training and generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling
from upslope.records import Prompt, Rollout


class Engine(Protocol):
    """A policy that samples fast.

    backend says what it computes with, and why where it is the slow way; known once a policy is loaded.
    """

    backend: Mapping[str, str]

    def load(self, policy: Policy, *, version: int) -> None:
        """Take the policy's present weights; rollouts carry the version, and caches of older weights are dropped."""
        ...

    def rest(self) -> None:
        """Give back the memory of weights and caches until the next load, before which nothing is sampled."""
        ...

    def sample(self, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, seed: int) -> list[Rollout]:
        """group_size rollouts of every prompt, groups in the order of the prompts.

        (seed, prompt id, sample index, position) decide the random numbers: the same seed gives the same tokens
        whatever else is in the batch. group is the prompt's index in the list. A row sampled from non-finite logits
        says so in its failure.
        """
        ...

    def every_answer(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Rollout]:
        """A rollout for every answer to every prompt, groups in the order of the prompts, with its log-probability.

        Raises: ModelError where answers are too many to list.
        """
        ...


class BranchingEngine(Engine, Protocol):
    """An engine that can go back to any decision of a row and go on from there anew."""

    def branch(
        self, rollouts: Sequence[Rollout], kept: Sequence[int], *, num_branches: int, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """num_branches rollouts of every rollout, in order, that begin with its first kept[i] actions and go on anew.

        Each is a sample of the policy given these actions: it ends where the row would, max_new_tokens counting from
        the row's own beginning. Where all of a row's actions are kept there is nothing to decide, and all are the row
        itself. group is the rollout's index in the list.
        """
        ...
