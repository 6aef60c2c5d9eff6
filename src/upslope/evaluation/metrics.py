"""A task's metric on its held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upslope.engines.engine import Engine
from upslope.errors import RewardError
from upslope.policies.sampling import Sampling
from upslope.records import Prompt, Rollout
from upslope.rewards import Scorer, count_failures


@dataclass(frozen=True, slots=True)
class Measurement:
    """The metric of every prompt that could be scored, by prompt id, and the rollouts behind it."""

    values: dict[int, float]
    failures: dict[str, int]
    rollouts: tuple[Rollout, ...]

    @property
    def mean(self) -> float:
        """Mean over the scored prompts."""
        return sum(self.values.values()) / len(self.values)

    @property
    def num_failed(self) -> int:
        """Prompts that could not be scored."""
        return sum(self.failures.values())


def measure(
    engine: Engine,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    *,
    metric: str,
    sampling: Sampling,
    seed: int,
) -> Measurement:
    """One rollout a prompt, scored; `metric` is the name under which the scorer reports it.

    The same seed, prompts and sampling decode in the same way whatever the weights, so two measurements are paired.
    Raises: RewardError when no prompt could be scored.
    """
    scored = scorer.score(engine.sample(prompts, group_size=1, sampling=sampling, seed=seed))
    return measured(scored, metric=metric)


def measured(rollouts: Sequence[Rollout], *, metric: str) -> Measurement:
    """What scored rollouts, one a prompt, say of the metric. Raises: RewardError when none could be scored."""
    values = {
        rollout.prompt.id: rollout.metrics[metric]
        for rollout in rollouts
        if rollout.failure is None and metric in rollout.metrics
    }
    failures = count_failures(rollouts)
    if not values:
        reason = next(iter(failures), f"no reward reports {metric!r}")
        raise RewardError(f"none of {len(rollouts)} held-out prompts could be scored: {reason}")
    return Measurement(values, failures, tuple(rollouts))
