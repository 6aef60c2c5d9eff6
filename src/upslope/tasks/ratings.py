"""A task of what people said on the page of `upslope rate`: comparisons or stars of a run's samples."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upslope.errors import DataError
from upslope.records import Prompt
from upslope.report.ratings import Rating, Ratings
from upslope.tasks.preferences import contradictions
from upslope.tasks.prompts import EVAL_IDS, UnusableError, completion_text, make_prompt
from upslope.tasks.task import Reward, Task

_LOG = logging.getLogger(__name__)


def ratings(
    path: str | Path,
    *,
    stars: bool = False,
    held_out: float = 0.0,
    reward: Reward | Sequence[Reward] = (),
    metric: Reward | None = None,
) -> Task:
    """A task whose prompts come with the answers that people rated, for reward models and preference learning.

    path is the file of ratings, or the folder of the run they are in. Each rating that stands is a prompt of its own,
    with the columns chosen, rejected and rater; or, where stars is True, completion, rating (1 to 5), desirable (but
    for three stars) and rater. held_out is the share of the distinct prompts whose ratings are held out, by a hash of
    the prompt; at least one. reward and metric serve sampled completions.

    Ties, skipped questions, the other kind of rating, empty answers, ratings taken back and damaged lines are left out
    and counted in `skipped`. Comparisons that contradict each other, of two raters, say, are kept, counted and said.

    Raises: DataError where no rating is left, or held_out is no share below 1.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out:g}; it must be a share of the prompts, at least 0 and below 1")
    file = Path(path) / "ratings.jsonl" if Path(path).is_dir() else Path(path)
    store = Ratings(file)
    prompts: list[Prompt] = []
    left_out: Counter[str] = Counter()
    for place, rating in enumerate(store.standing()):
        try:
            record = _record(rating, stars=stars)
            prompts.append(make_prompt(record, place, column="prompt", completion=None, chat=False, system=None))
        except UnusableError as problem:
            left_out[str(problem)] += 1
    left_out |= Counter({"a rating taken back": store.taken_back, "a damaged line": store.damaged})
    counts = ", ".join(f"{count} with {reason}" for reason, count in (+left_out).most_common())
    if not prompts:
        wanted = "stars" if stars else "a comparison that says which is better"
        raise DataError(f"{file} holds no rating with {wanted} ({counts or 'upslope rate RUN writes them'})")
    if counts:
        _LOG.warning("%s: of the ratings %s are left out", file, counts)
    if against := contradictions(prompts):
        _LOG.warning("%s: %d comparisons are contradicted by another one of the same answers", file, against)
    apart = _held_out(prompts, held_out)
    return Task(
        prompts=[prompt for prompt in prompts if prompt.text not in apart],
        eval_prompts=[dataclasses.replace(p, id=EVAL_IDS + p.id) for p in prompts if p.text in apart],
        reward=reward,
        metric=metric,
        name=file.stem,
        skipped=+left_out,
    )


def _record(rating: Rating, *, stars: bool) -> dict[str, Any]:
    """A rating as the record of a judged completion. Raises: UnusableError where it says nothing of the wanted kind."""
    verdict, samples = rating["verdict"], rating["samples"]
    if stars != (len(samples) == 1):
        raise UnusableError("a comparison instead of stars" if stars else "stars instead of a comparison")
    if verdict in ("tie", "skip"):
        raise UnusableError(f"a {verdict}")
    texts = [completion_text(sample["text"], "text") for sample in samples]
    common = {"prompt": rating["prompt"], "rater": rating.get("rater")}
    if stars:
        middle = {} if verdict == 3 else {"desirable": verdict > 3}
        return {**common, "completion": texts[0], "rating": float(verdict), **middle}
    if texts[0] == texts[1]:
        raise UnusableError("two equal sides")
    chosen, rejected = texts if verdict == "left" else texts[::-1]
    return {**common, "chosen": chosen, "rejected": rejected}


def _held_out(prompts: Sequence[Prompt], share: float) -> frozenset[str]:
    """The texts of that share of the distinct prompts; at least one where the share is above 0."""
    texts = sorted({prompt.text for prompt in prompts}, key=lambda text: hashlib.blake2b(text.encode()).digest())
    return frozenset(texts[: max(1, round(share * len(texts)))] if share else ())
