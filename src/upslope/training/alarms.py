"""What goes wrong in training, seen in the metrics of its steps: when it begins, when it ends, and its mend.

Limits and their reasons stand in docs/alarms.md, under a heading for each alarm.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from upslope.training import drift
from upslope.training.drift import Metrics

WINDOW = 10  # steps over which a KL runs away
MEMORY = max(drift.WINDOWS)  # steps that a rule may look back on


@dataclass(frozen=True, slots=True)
class Rule:
    """One pathology: a quantity of the latest steps (newest last; None where it is unknown), and its limit.

    Its alarm begins when the quantity was at the limit or beyond it in `steps` steps in a row, and ends when it was on
    the right side for as many; steps where it is unknown do not count either way. says holds {value}.
    """

    name: str
    measure: Callable[[Sequence[Metrics]], float | None]
    limit: float
    steps: int
    says: str
    mend: str
    beyond: Callable[[float, float], bool] = operator.ge

    def holds(self, value: float) -> bool:
        """True when the value is at the limit or beyond it; NaN is not."""
        return self.beyond(value, self.limit)

    def alarm(self, value: float, state: Literal["begin", "end"]) -> Alarm:
        """The alarm in this state; the text of one that begins says what to do."""
        text = self.says.format(value=value)
        if state == "begin":
            text += f"; {self.mend} (docs/alarms.md#{self.name})"
        return Alarm(self.name, state, value, text)


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that begins or ends: the quantity that decided it, and a sentence for the user."""

    name: str
    state: Literal["begin", "end"]
    value: float
    text: str


class Alarms:
    """The alarms of one run, step after step; `active` names those that are on.

    All of it follows from the run's metrics, so a resumed run gives its history and goes on as if it had not stopped.
    """

    def __init__(self, history: Iterable[Metrics] = ()) -> None:
        self.active: set[str] = set()
        self._recent: deque[Metrics] = deque(maxlen=MEMORY)
        self._streaks = {rule.name: 0 for rule in RULES}
        for metrics in history:
            self.update(metrics)

    def update(self, metrics: Metrics) -> list[Alarm]:
        """Take in the metrics of one more step; returns the alarms that begin or end with it."""
        self._recent.append(metrics)
        changed = []
        recent = list(self._recent)
        for rule in RULES:
            value = rule.measure(recent)
            if value is None:
                continue
            on = rule.name in self.active
            self._streaks[rule.name] = 0 if rule.holds(value) == on else self._streaks[rule.name] + 1
            if self._streaks[rule.name] == rule.steps:
                self._streaks[rule.name] = 0
                self.active ^= {rule.name}
                changed.append(rule.alarm(value, "end" if on else "begin"))
        return changed


def check(metrics: Metrics) -> list[Alarm]:
    """The pathologies that one step's metrics show, without waiting for further steps."""
    values = [(rule, rule.measure([metrics])) for rule in RULES]
    return [rule.alarm(value, "begin") for rule, value in values if value is not None and rule.holds(value)]


def _newest(name: str) -> Callable[[Sequence[Metrics]], float | None]:
    return lambda steps: steps[-1].get(name)


def _equal_rewards(steps: Sequence[Metrics]) -> float | None:
    """The share of groups whose scores are all equal; where no group has two rows, 1 when all of the batch are."""
    metrics = steps[-1]
    if "equal_groups" in metrics or metrics.get("samples", 0) < 2 or "reward_std" not in metrics:
        return metrics.get("equal_groups")
    return float(metrics["reward_std"] == 0)


def _truncated(steps: Sequence[Metrics]) -> float | None:
    terminated = steps[-1].get("terminated")
    return None if terminated is None else 1 - terminated


def _reward_share(steps: Sequence[Metrics]) -> float | None:
    """The reward's share of the step's seconds; 0 where it took less than half a second, which nobody waits for."""
    seconds, whole = steps[-1].get("reward_s"), steps[-1].get("step_s")
    if seconds is None or not whole:
        return None
    return float(seconds / whole) if seconds >= 0.5 else 0.0


def _dropped(steps: Sequence[Metrics]) -> float | None:
    """The share of sampled rows that could not be used; equal scores, which dynamic sampling sorts out, are usable."""
    metrics = steps[-1]
    if "dropped" not in metrics:
        return None
    failed = metrics["dropped"] - metrics.get("dropped/equal scores", 0)
    return float(failed / max(1, metrics["samples"] + metrics["dropped"]))


def _unpaid_kl(steps: Sequence[Metrics]) -> float | None:
    """By what factor the KL from the reference grew over the window, 0 where it is small or the reward paid for it.

    It paid when it rose by a tenth of its standard deviation, so that chance does not hide a policy that runs away.
    """
    steps = steps[-WINDOW:]
    if len(steps) < WINDOW or any("kl" not in metrics for metrics in steps):
        return None
    first, last = steps[:3], steps[-3:]
    before, after = (fmean(metrics["kl"] for metrics in part) for part in (first, last))
    gain = fmean(metrics["reward"] for metrics in last) - fmean(metrics["reward"] for metrics in first)
    paid = gain > 0.1 * fmean(metrics["reward_std"] for metrics in steps)
    return 0.0 if paid or after < 0.1 else after / max(before, 0.01)


RULES = (
    Rule(
        "equal_rewards",
        _equal_rewards,
        limit=0.9,
        steps=5,
        says="{value:.0%} of the groups have equal rewards",
        mend="give prompts of mixed difficulty, or a reward that also pays for part of the way",
    ),
    Rule(
        "never_ends",
        _newest("terminated"),
        limit=0.0,
        beyond=operator.le,
        steps=5,
        says="{value:.0%} of the rows ended by themselves",
        mend="use a model and chat template that end their answers, set sampling.stop, or raise max_new_tokens",
    ),
    Rule(
        "truncation",
        _truncated,
        limit=0.2,
        steps=10,
        says="{value:.0%} of the rows were cut at sampling.max_new_tokens",
        mend="raise it, or reward shorter answers",
    ),
    Rule(
        "slow_reward",
        _reward_share,
        limit=0.3,
        steps=5,
        says="the reward function takes {value:.0%} of the step's time",
        mend="make it faster, or let it score a batch at once",
    ),
    Rule(
        "dropped_samples",
        _dropped,
        limit=0.1,
        steps=3,
        says="{value:.0%} of the sampled rows were dropped",
        mend="see dropped/REASON in the log and mend the reward function",
    ),
    Rule(
        "high_lr",
        _newest("policy_kl"),
        limit=0.05,
        steps=3,
        says="the policy moves by {value:.2g} nats an action within a step",
        mend="lower optimizer.lr or algorithm.epochs, or set algorithm.kl_stop",
    ),
    Rule(
        "entropy_collapse",
        _newest("entropy"),
        limit=0.02,
        beyond=operator.le,
        steps=10,
        says="the entropy is {value:.2g} nats an action, so samples hardly differ",
        mend="where the task is not solved, lower optimizer.lr or set algorithm.entropy_coef",
    ),
    Rule(
        "kl_runaway",
        _unpaid_kl,
        limit=2.0,
        steps=3,
        says=f"the KL from the reference grew by a factor of {{value:.1f}} in {WINDOW} steps, without a gain in reward",
        mend="lower optimizer.lr or raise algorithm.kl_coef",
    ),
    Rule(
        "engine_drift",
        _newest("gap_k3"),
        limit=0.005,
        steps=3,
        says="engine and trainer differ by {value:.2g} nats an action",
        mend="set engine.kernels to 'torch', or correct it by algorithm.importance_cap = 2",
    ),
    Rule(
        "value_divergence",
        _newest("explained_variance"),
        limit=-0.5,
        beyond=operator.le,
        steps=3,
        says="the critic's explained variance is {value:.2f}, worse than a constant",
        mend="lower optimizer.critic_lr or algorithm.value_coef",
    ),
    Rule(
        "reward_hacking",
        drift.parting,
        limit=4.0,
        steps=5,
        says="the reward rises while the task's metric (gold) falls, each by {value:.1f} standard errors or more",
        mend="read the newest samples; raise algorithm.kl_coef, mend the reward, or go back to an earlier checkpoint",
    ),
    Rule(
        "length_drift",
        drift.lengthening,
        limit=2.0,
        steps=5,
        says="rows are {value:.1f} times as long as they were, and no metric of the task rose with them",
        mend="see whether the reward pays for length; charge it, or give the task a metric that says if it is due",
    ),
    Rule(
        "repetition_drift",
        drift.repeating,
        limit=0.2,
        steps=5,
        says="the share of repeated 3-grams rose by {value:.2f}, and no metric of the task rose with it",
        mend="read the newest samples; give the reward a repetition_penalty, or raise algorithm.kl_coef",
    ),
    Rule(
        "reward_uncertainty",
        drift.disagreement,
        limit=2.0,
        steps=5,
        says="the reward models disagree {value:.1f} times as much as they did about the first samples",
        mend="raise pessimism or algorithm.kl_coef, or train them on newer samples",
    ),
)
