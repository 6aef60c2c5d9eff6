"""Tasks of human judgement from data files: pairs, rankings or ratings of completions."""

from __future__ import annotations

import dataclasses
import logging
import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.records import Prompt
from upslope.tasks.prompts import EVAL_IDS, UnusableError, completion_text
from upslope.tasks.readers import read_prompts
from upslope.tasks.task import Reward, Task

_LOG = logging.getLogger(__name__)


def preferences(
    path: str | Path,
    *,
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    margin: str | None = None,
    ranking: str | None = None,
    rating: str | None = None,
    completion: str | None = None,
    scale: Sequence[float] = (1.0, 5.0),
    eval: str | Path | None = None,
    reward: Reward | Sequence[Reward] = (),
    metric: Reward | None = None,
    chat: bool = False,
    system: str | None = None,
    split: str = "train",
    eval_split: str = "test",
    strict: bool = True,
    limit: int | None = None,
    num_eval: int | None = None,
) -> Task:
    """A task whose prompts come with judged completions, for reward models and preference learning.

    Of the three forms, a file has the one whose column is named: `ranking` names a list of completions, the best first;
    `rating` a number within `scale` (both ends included) that `completion` got; else `chosen` and `rejected` are the
    two sides of a pair, and `margin`, where named, says how much the first is better. A completion is a text, or a chat
    of one message. The prompts' columns then are chosen, rejected and margin; ranking; or completion, rating and, but
    in the middle of the scale, desirable. Booleans rate as 0 and 1, with scale = [0, 1].

    A missing or empty side, two equal sides and a rating out of range make a record unusable: an error by file and
    line, or skipped and counted where strict is False. Pairs that contradict each other are kept, counted and said.
    reward and metric serve sampled completions, in evaluation and online learning. The others are as in `from_file`.

    Raises: DataError naming file and line.
    """
    judged = _judgement(chosen, rejected, margin, ranking, rating, (float(scale[0]), float(scale[1])))

    def check(read: Prompt) -> None:
        judged(read.columns)

    column = (completion or "completion") if rating is not None else None
    how: dict[str, Any] = {"prompt": prompt, "completion": column, "chat": chat, "system": system, "strict": strict}
    prompts, skipped = read_prompts(path, split=split, limit=limit, check=check, **how)
    held_out: list[Prompt] = []
    lost: dict[str, int] = {}
    if eval is not None:
        held_out, lost = read_prompts(eval, split=eval_split, limit=num_eval, first_id=EVAL_IDS, check=check, **how)
    if against := contradictions(made := [_with(read, judged) for read in prompts]):
        _LOG.warning("%s: %d pairs are contradicted by another pair of the same prompt", path, against)
    return Task(
        prompts=made,
        reward=reward,
        metric=metric,
        eval_prompts=[_with(read, judged) for read in held_out],
        name=Path(path).stem,
        skipped=Counter(skipped) + Counter(lost),
    )


def contradictions(prompts: Sequence[Prompt]) -> int:
    """How many pairs are said the other way round as well, for the same prompt."""
    pairs = [(p.content, p.columns["chosen"], p.columns["rejected"]) for p in prompts if "chosen" in p.columns]
    known = {(str(content), first, second) for content, first, second in pairs}
    return sum((str(content), second, first) in known for content, first, second in pairs)


Judgement = Callable[[Mapping[str, Any]], dict[str, Any]]


def _with(prompt: Prompt, judged: Judgement) -> Prompt:
    return dataclasses.replace(prompt, columns={**prompt.columns, **judged(prompt.columns)})


def _judgement(
    chosen: str, rejected: str, margin: str | None, ranking: str | None, rating: str | None, scale: tuple[float, float]
) -> Judgement:
    """From a record's columns to those of its form; raises UnusableError where it cannot be used."""
    if rating is not None:
        return lambda columns: _rating(columns, rating, scale)
    if ranking is not None:
        return lambda columns: {"ranking": _ranking(columns, ranking)}
    return lambda columns: _pair(columns, chosen, rejected, margin)


def _pair(columns: Mapping[str, Any], chosen: str, rejected: str, margin: str | None) -> dict[str, Any]:
    sides = [completion_text(_present(columns, name), name) for name in (chosen, rejected)]
    if sides[0] == sides[1]:
        raise UnusableError("two equal sides")
    found: dict[str, Any] = dict(zip(("chosen", "rejected"), sides, strict=True))
    return found | ({} if margin is None else {"margin": _number(columns, margin)})


def _ranking(columns: Mapping[str, Any], name: str) -> list[str]:
    items = _present(columns, name)
    if not isinstance(items, list | tuple) or len(items) < 2:
        raise UnusableError(f"a {name!r} of fewer than two completions")
    texts = [completion_text(item, name) for item in items]
    if len(set(texts)) < len(texts):
        raise UnusableError("two equal sides")
    return texts


def _rating(columns: Mapping[str, Any], name: str, scale: tuple[float, float]) -> dict[str, Any]:
    value = _number(columns, name)
    if not scale[0] <= value <= scale[1]:
        raise UnusableError(f"a {name!r} outside {scale[0]:g} to {scale[1]:g}")
    middle = sum(scale) / 2
    return {"rating": value} | ({} if value == middle else {"desirable": value > middle})


def _present(columns: Mapping[str, Any], name: str) -> Any:
    if name not in columns:
        raise UnusableError(f"no {name!r}")
    return columns[name]


def _number(columns: Mapping[str, Any], name: str) -> float:
    value = _present(columns, name)
    try:
        number = float(value) if isinstance(value, numbers.Real | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UnusableError(f"a {name!r} that is no number")
    return number
