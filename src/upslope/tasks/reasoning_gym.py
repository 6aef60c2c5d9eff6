"""Any dataset of reasoning-gym as a task, scored by the dataset's own scorer. Imports no torch of its own accord."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from upslope.errors import DependencyError, RecipeError

if TYPE_CHECKING:
    from upslope.tasks.task import Task

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def reasoning_gym(
    dataset: str,
    *,
    size: int = 2000,
    num_eval: int = 200,
    seed: int = 0,
    chat: bool = True,
    system: str | None = None,
    **config: Any,
) -> Task:
    """A procedurally made task of reasoning-gym by name; config goes to the dataset.

    One dataset of size + num_eval entries is made from seed: the first `size` train, the rest are held out; entries
    whose question is also a training question are left out of the held-out ones. Reward and metric are the
    dataset's own `score_answer` in [0, 1] of the answer: what stands in the last <answer>...</answer>, or the whole
    completion without blank space at its ends.

    Raises: RecipeError for an unknown dataset or config; DependencyError when reasoning-gym is missing.
    """
    from upslope.tasks.task import Task

    score = GymScore(dataset, {"size": size + num_eval, "seed": seed, **config})
    entries = score.entries()
    questions = {entry["question"] for entry in entries[:size]}
    held_out = [entry for entry in entries[size:] if entry["question"] not in questions]
    records = [[_record(entry) for entry in part] for part in (entries[:size], held_out)]
    return Task(
        prompts=records[0], reward=score, metric=score, eval_prompts=records[1], name=dataset, chat=chat, system=system
    )


class GymScore:
    """dataset.score_answer(answer, entry) in [0, 1]; sent to a worker by its settings, and built anew there."""

    def __init__(self, dataset: str, config: dict[str, Any]) -> None:
        self.__name__ = dataset
        self._config = config
        self._dataset = _make(dataset, config)

    def __reduce__(self) -> tuple[Any, ...]:
        return GymScore, (self.__name__, self._config)

    def entries(self) -> list[dict[str, Any]]:
        """Question, answer and metadata of every problem of the dataset."""
        return [self._dataset[index] for index in range(len(self._dataset))]

    def __call__(self, completion: str, entry: dict[str, Any]) -> float:
        return float(self._dataset.score_answer(answer=extract_answer(completion), entry=entry))


def extract_answer(completion: str) -> str:
    """What stands in the last <answer>...</answer>, else the whole completion; stripped."""
    tagged = _ANSWER.findall(completion)
    return (tagged[-1] if tagged else completion).strip()


def _record(entry: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": entry["question"], "answer": entry["answer"], "entry": entry}


def _make(name: str, config: dict[str, Any]) -> Any:
    try:
        import reasoning_gym as gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise DependencyError("reasoning-gym", "tasks") from None
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4) or sorted(DATASETS)[:5]
        raise RecipeError(f"reasoning-gym has no dataset {name!r}; did you mean {', '.join(map(repr, near))}?")
    try:
        return gym.create_dataset(name, **config)
    except (TypeError, AssertionError, ValueError) as error:
        raise RecipeError(f"reasoning-gym's {name!r} refuses its settings: {error}") from error
