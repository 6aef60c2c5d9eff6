"""A task: prompts, a reward and a metric."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from upslope.errors import DataError, RewardError
from upslope.records import Prompt
from upslope.rewards.terms import BATCH_NAMES, ROW_NAMES, RewardTerm, parameters
from upslope.tasks.prompts import EVAL_IDS, as_prompts

Reward: TypeAlias = Callable[..., Any] | RewardTerm


@dataclass(frozen=True)
class Task:
    """Prompts to train on, prompts held out, what is rewarded, and what success is measured by.

    prompts and eval_prompts may be given as prompts, strings, chats or records with a `prompt` column. chat=True
    turns strings into chats of one user message and system puts a system message first; a Prompt stays as it is.
    reward is a function, a RewardTerm, or several of them; a row's reward is their weighted sum (none is
    needed for supervised training). metric is a function
    of the same two shapes; the reward sum where None. labels are what a classifier or tagger chooses from, in the order
    of its actions. After scoring with `terms`, a row's metric is
    `rollout.metrics[task.metric_name]`. skipped counts data lines left out, by reason; strict: a prompt that the policy
    cannot read is an error, else it is left out and counted as well.

    Raises: DataError when there is no prompt, one is unusable, or two share an id; RewardError when a function has
    neither shape, needs a column that no prompt has, or names a label that there is not.
    """

    prompts: Sequence[Any]
    reward: Reward | Sequence[Reward] = ()
    metric: Reward | None = None
    eval_prompts: Sequence[Any] = ()
    name: str = "task"
    chat: bool = False
    system: str | None = None
    labels: Sequence[str] = ()
    label_column: str | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    strict: bool = True
    terms: tuple[RewardTerm, ...] = field(init=False)
    metric_name: str = field(init=False)

    def __post_init__(self) -> None:
        made = {"chat": self.chat, "system": self.system}
        prompts = tuple(as_prompts(self.prompts, **made))  # type: ignore[arg-type]
        eval_prompts = tuple(as_prompts(self.eval_prompts, first_id=EVAL_IDS, **made))  # type: ignore[arg-type]
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "eval_prompts", eval_prompts)
        rewards = self.reward if isinstance(self.reward, Sequence) else [self.reward]
        terms, metric_name = _with_metric([_term(reward) for reward in rewards], self.metric)
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "metric_name", metric_name)
        _check_prompts(self.name, prompts, eval_prompts)
        for term in terms:
            _check_columns(term, prompts)
            _check_labels(term, self.labels)


def _term(reward: Reward) -> RewardTerm:
    return reward if isinstance(reward, RewardTerm) else RewardTerm(reward)


def _with_metric(terms: list[RewardTerm], metric: Reward | None) -> tuple[tuple[RewardTerm, ...], str]:
    """The metric as a term of weight 0, unless it is the reward or one of its terms already."""
    if metric is None:
        return tuple(terms), "reward"
    function = metric.function if isinstance(metric, RewardTerm) else metric
    for term in terms:
        if term.function is function:
            return tuple(terms), term.name
    taken = {term.name for term in terms}
    name = metric.name if isinstance(metric, RewardTerm) and metric.name not in taken else "metric"
    return (*terms, RewardTerm(function, 0.0, name)), name


def _check_prompts(name: str, prompts: Sequence[Prompt], eval_prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise DataError(f"task {name!r} has no prompts; give at least one")
    seen: set[int] = set()
    for prompt in (*prompts, *eval_prompts):
        if prompt.id in seen:
            raise DataError(
                f"task {name!r} has two prompts with id {prompt.id}, held-out prompts included; give each its own id, "
                "for it decides the random numbers"
            )
        seen.add(prompt.id)


def _check_labels(term: RewardTerm, labels: Sequence[str]) -> None:
    """A label that a reward treats apart has to be one of the task's, else its entry would silently never count."""
    unknown = sorted(getattr(term.function, "labels", frozenset()) - set(labels)) if labels else []
    if unknown:
        near = difflib.get_close_matches(unknown[0], labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(labels)}"
        raise RewardError(f"reward {term.name!r} names the label {unknown[0]!r}, which the task does not have; {hint}")


def _check_columns(term: RewardTerm, prompts: Sequence[Prompt]) -> None:
    known = set(ROW_NAMES if term.shape == "row" else BATCH_NAMES)
    known.update(*(prompt.columns for prompt in prompts))
    needed = [name for name, required in parameters(term.function)[0].items() if required]
    for name in (*needed, *getattr(term.function, "columns", ())):
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"
            raise RewardError(f"reward {term.name!r} asks for {name!r}, but no prompt has such a column; {hint}")
