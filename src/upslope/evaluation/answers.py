"""The scored answers of several models to the same prompts, as they grow."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from upslope.errors import RewardError
from upslope.evaluation.arms import Arm, EnsembleArm
from upslope.evaluation.critic import Critic
from upslope.evaluation.paired import Pairs
from upslope.policies.sampling import Sampling
from upslope.records import Prompt, Rollout
from upslope.rewards import Scorer, count_failures


class Answers:
    """Rewards of every arm on the prompts that all arms could be scored on, and what was left out.

    metric: the name under which the scorer reports the reward. clusters: prompt id -> cluster. The critic, where there
    is one, gives each rollout its advantage control.
    """

    def __init__(
        self,
        arms: Sequence[Arm | EnsembleArm],
        scorer: Scorer,
        *,
        metric: str,
        samples: int,
        sampling: Sampling,
        clusters: Mapping[int, int],
        critic: Critic | None = None,
    ) -> None:
        self.arms, self.metric, self.clusters = tuple(arms), metric, clusters
        self._scorer, self._samples, self._sampling, self._critic = scorer, samples, sampling, critic
        self.prompts: list[int] = []
        self.rewards: list[list[list[float]]] = [[] for _ in arms]
        self._controls: list[list[float]] = [[] for _ in arms]
        self.failures: Counter[str] = Counter()
        self.num_left_out = 0
        self.scoring_s = self.added_s = 0.0

    def answer(self, prompts: Sequence[Prompt], arms: Sequence[int] | None = None) -> None:
        """Let the arms (all by default) answer these prompts as well.

        Raises: RewardError while no prompt could be scored for all of them.
        """
        chosen = range(len(self.arms)) if arms is None else arms
        rows = {index: self._scored(self.arms[index], prompts) for index in chosen}
        controls = {index: self._control(index, scored) for index, scored in rows.items()}
        size = self._samples
        for place, prompt in enumerate(prompts):
            here = slice(place * size, (place + 1) * size)
            if any(self._failed(rollout) for scored in rows.values() for rollout in scored[here]):
                self.num_left_out += 1
                continue
            self.prompts.append(prompt.id)
            for index, scored in rows.items():
                self.rewards[index].append([rollout.metrics[self.metric] for rollout in scored[here]])
                self._controls[index].append(float(np.mean(controls[index][here])))
        if not self.prompts:
            reason = next(iter(self.failures), f"no reward reports {self.metric!r}")
            raise RewardError(f"none of {self.num_left_out} prompts could be scored for every model: {reason}")

    def pairs(self, a: int, b: int) -> Pairs:
        """Arms a and b on the prompts answered so far."""
        controls = None
        if self._critic is not None:
            controls = np.array([self._controls[b], self._controls[a]]).T
        clusters = np.array([self.clusters[prompt] for prompt in self.prompts])
        return Pairs(np.array(self.rewards[a]), np.array(self.rewards[b]), clusters, controls)

    @property
    def shares_numbers(self) -> bool:
        """Whether the arms sample, and by the same random numbers."""
        return not self._sampling.greedy and len({arm.seed for arm in self.arms}) == 1

    @property
    def num_clusters(self) -> int:
        """Clusters that have a prompt which could be scored."""
        return len({self.clusters[prompt] for prompt in self.prompts})

    def notes(self) -> list[str]:
        """What was not shared or left out, and why."""
        found = []
        if not self.shares_numbers and not self._sampling.greedy:
            found.append("the models' tokenizers differ: paired on prompts, without common random numbers")
        if self.num_left_out:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self.failures.most_common(3))
            found.append(
                f"{self.num_left_out} prompts could not be scored for every model and were left out of all: {reasons}"
            )
        return found

    def _scored(self, arm: Arm | EnsembleArm, prompts: Sequence[Prompt]) -> list[Rollout]:
        rollouts = arm.answer(prompts, samples=self._samples, sampling=self._sampling)
        started = time.perf_counter()
        scored = self._scorer.score(rollouts)
        self.scoring_s += time.perf_counter() - started
        self.failures.update(count_failures(scored))
        unmeasured = sum(r.failure is None and self.metric not in r.metrics for r in scored)
        self.failures.update({f"no reward reports {self.metric!r}": unmeasured} if unmeasured else {})
        return scored

    def _failed(self, rollout: Rollout) -> bool:
        return rollout.failure is not None or self.metric not in rollout.metrics

    def _control(self, index: int, scored: Sequence[Rollout]) -> list[float]:
        if self._critic is None:
            return [0.0] * len(scored)
        started = time.perf_counter()
        found = self._critic.controls(scored, self.arms[index].policies[0], sampling=self._sampling)
        self.added_s += time.perf_counter() - started
        return found
