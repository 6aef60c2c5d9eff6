"""Scores rollouts: calls every reward term, weighs and adds, and marks the rows that could not be scored."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Literal

from upslope.errors import RewardError
from upslope.records import Rollout
from upslope.rewards.calling import Call, Outcome, Value, run_calls
from upslope.rewards.process import WorkerProcess
from upslope.rewards.terms import RewardTerm, select_arguments

Isolation = Literal["process", "none"]

_LARGEST = 3.4028234663852886e38  # float32, the type of a batch's rewards
_LOG = logging.getLogger(__name__)


class Scorer:
    """reward[row] = sum over terms of weight * value, added once at the row's last action (or one value an action).

    timeout_s [seconds] bounds each row of a row function, and each call of a batch function. isolation `process` runs
    the functions in a worker process that is killed and replaced when it hangs or dies; `none` runs them here, with
    the same handling of exceptions and wrong values, but a function that blocks or exits takes the trainer along.
    memory_bytes is what the worker may allocate beyond its start (Linux only; None for no limit).

    A row fails (`Rollout.failure`, no rewards) when any term raises, hangs, ends its process, or returns NaN, an
    infinity, a number beyond float32, a list of another length than its actions, or anything but numbers; also when
    no term applies (all returned None) or there is no action (`empty`). All rows of a failed batch call fail; if async
    rows block or end the process, all that were unfinished fail. `Rollout.metrics` gets each term's raw value by name
    (the sum of per-action values) and the row's `reward`. Use as a context manager, or call `close`.

    Raises: RewardError when there is no term, two share a name, or one cannot be sent to the worker.
    """

    def __init__(
        self,
        terms: Sequence[RewardTerm],
        *,
        timeout_s: float,
        isolation: Isolation = "process",
        memory_bytes: int | None = 4 << 30,
    ) -> None:
        self.terms = tuple(terms)
        _check(self.terms, timeout_s, isolation)
        self._timeout_s = timeout_s
        self._lock = Lock()
        self._reported: set[str] = set()
        self._worker: WorkerProcess | None = None
        if isolation == "process":
            self._worker = WorkerProcess(self.terms, timeout_s=timeout_s, memory_bytes=memory_bytes)

    def __enter__(self) -> Scorer:
        if self._worker is not None:
            self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the worker process and all it started. Scoring again starts a new one."""
        if self._worker is not None:
            self._worker.stop()

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The same rollouts in the same order, each with rewards and metrics, or with a failure. From any thread.

        Rollouts that already have a failure come back as they are.
        """
        with self._lock:
            results: list[dict[str, Outcome]] = [{} for _ in rollouts]
            rows = [index for index, rollout in enumerate(rollouts) if rollout.actions and not rollout.failure]
            for number, term in enumerate(self.terms):
                outcomes = self._score_term(number, [rollouts[index] for index in rows])
                for index, outcome in zip(rows, outcomes, strict=True):
                    results[index][term.name] = outcome
            return [self._combine(*pair) for pair in zip(rollouts, results, strict=True)]

    def _score_term(self, number: int, rollouts: Sequence[Rollout]) -> list[Outcome]:
        term = self.terms[number]
        if term.shape == "batch":
            return self._run(number, [_batch_call(term, rollouts)])[0] if rollouts else []
        picked = [select_arguments(term.function, _row_arguments(rollout)) for rollout in rollouts]
        answered = iter(self._run(number, [Call(arguments) for arguments, missing in picked if not missing]))
        return [
            Outcome(failure=f"needs {missing[0]!r}, which the data lacks") if missing else next(answered)[0]
            for _, missing in picked
        ]

    def _run(self, number: int, calls: Sequence[Call]) -> list[list[Outcome]]:
        if self._worker is not None:
            return self._worker.run(number, calls)
        finished = dict(run_calls(self.terms[number].function, calls, timeout_s=self._timeout_s))
        return [finished[index] for index in range(len(calls))]

    def _combine(self, rollout: Rollout, outcomes: Mapping[str, Outcome]) -> Rollout:
        if rollout.failure:
            return rollout
        if not rollout.actions:
            return rollout.replace(rewards=(), failure="empty")
        rewards = [0.0] * len(rollout.actions)
        metrics = dict(rollout.metrics)
        only_measures = not any(term.weight for term in self.terms)
        applies = False
        for term in self.terms:
            outcome = outcomes[term.name]
            failure = outcome.failure or _invalid(outcome.value, len(rewards))
            if failure:
                self._report(term, failure, outcome.detail)
                return rollout.replace(rewards=(), failure=f"{term.name}: {failure}", metrics=metrics)
            metrics |= outcome.metrics
            if outcome.value is not None:
                applies = applies or term.weight != 0 or only_measures
                metrics[term.name] = _add(rewards, term.weight, outcome.value)
        total = math.fsum(rewards)
        if not applies or not abs(total) <= _LARGEST:
            failure = "no reward applies" if not applies else "the weighted sum is beyond float32"
            return rollout.replace(rewards=(), failure=failure, metrics=metrics)
        return rollout.replace(rewards=tuple(rewards), metrics={**metrics, "reward": total})

    def _report(self, term: RewardTerm, failure: str, detail: str) -> None:
        """Logs the first failure of each kind with its traceback; the rest are only counted."""
        if (reason := f"{term.name}: {failure}") not in self._reported:
            self._reported.add(reason)
            _LOG.warning("reward %s; such samples are dropped and counted%s", reason, f"\n{detail}" if detail else "")


def count_failures(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """Number of rollouts by reason of failure, most frequent first."""
    return dict(Counter(rollout.failure for rollout in rollouts if rollout.failure).most_common())


def _check(terms: Sequence[RewardTerm], timeout_s: float, isolation: str) -> None:
    if not terms:
        raise RewardError("there is no reward; give at least one function")
    names = [term.name for term in terms]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise RewardError(
            f"two rewards are named {repeated[0]!r}; give each RewardTerm(function, name=...) its own name"
        )
    if "reward" in names and (len(terms) > 1 or terms[0].weight != 1.0):
        raise RewardError("a reward is named 'reward', as the weighted sum is; give it another by name=...")
    if not timeout_s > 0:
        raise RewardError(f"the reward timeout_s is {timeout_s!r}; it must be above 0 seconds")
    if isolation not in ("process", "none"):
        raise RewardError(f"the reward isolation is {isolation!r}; it must be 'process' or 'none'")


def _invalid(value: Value, num_actions: int) -> str | None:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if isinstance(value, list) and len(value) != num_actions:
        return "returned a list of the wrong length"
    for number in values:
        if not math.isfinite(number):
            return f"returned {number}"
        if abs(number) > _LARGEST:
            return "returned a number beyond float32"
    return None


def _add(rewards: list[float], weight: float, value: float | list[float]) -> float:
    """Adds weight * value to the rewards in place and returns the raw sum of value."""
    if not isinstance(value, list):
        rewards[-1] += weight * value
        return value
    for index, reward in enumerate(value):
        rewards[index] += weight * reward
    return math.fsum(value)


def _content(rollout: Rollout) -> Any:
    content = rollout.prompt.content
    return content if isinstance(content, str) else [dict(message) for message in content]


def _row_arguments(rollout: Rollout) -> dict[str, Any]:
    return {
        **rollout.prompt.columns,
        "prompt": _content(rollout),
        "completion": rollout.text,
        "completion_ids": list(rollout.actions),
        "num_tokens": len(rollout.actions),
        "terminated": rollout.terminated,
        "stop_reason": rollout.stop_reason,
    }


def _batch_call(term: RewardTerm, rollouts: Sequence[Rollout]) -> Call:
    """One call for all rows, as TRL makes it: columns as lists, chats as lists of messages."""
    rows = [_row_arguments(rollout) for rollout in rollouts]
    names = dict.fromkeys(name for row in rows for name in row)
    offered: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    offered["prompts"] = offered.pop("prompt")
    texts = offered.pop("completion")
    offered["completions"] = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(offered["prompts"], texts, strict=True)
    ]
    offered |= {"trainer_state": None, "log_metric": None, "log_extra": None}
    arguments, missing = select_arguments(term.function, offered)
    if missing:
        raise RewardError(f"reward {term.name!r} needs {missing[0]!r}, but the data has only: {', '.join(offered)}")
    return Call(arguments, num_rows=len(rows))
