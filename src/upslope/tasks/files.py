"""A task from data files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from upslope.records import Prompt
from upslope.tasks.prompts import EVAL_IDS
from upslope.tasks.readers import read_prompts
from upslope.tasks.task import Reward, Task


def from_file(
    path: str | Path,
    *,
    reward: Reward | Sequence[Reward] = (),
    prompt: str = "prompt",
    metric: Reward | None = None,
    eval: str | Path | None = None,
    completion: str | None = None,
    rename: Mapping[str, str] | None = None,
    chat: bool = False,
    system: str | None = None,
    split: str = "train",
    eval_split: str = "test",
    strict: bool = True,
    limit: int | None = None,
    num_eval: int | None = None,
) -> Task:
    """A Task of the prompts of one file, with those of the file `eval` held out.

    limit and num_eval keep the first so many of each; split and eval_split apply to `datasets`. The other arguments
    are those of `read_prompts` and `Task`.

    Raises: as `read_prompts` and `Task` do.
    """
    columns = {"prompt": prompt, "completion": completion, "rename": rename}
    how = {**columns, "chat": chat, "system": system, "strict": strict}
    prompts, skipped = read_prompts(path, split=split, limit=limit, **how)  # type: ignore[arg-type]
    held_out: list[Prompt] = []
    lost: dict[str, int] = {}
    if eval is not None:
        held_out, lost = read_prompts(eval, split=eval_split, limit=num_eval, first_id=EVAL_IDS, **how)  # type: ignore[arg-type]
    return Task(
        prompts=prompts,
        reward=reward,
        metric=metric,
        eval_prompts=held_out,
        name=Path(path).stem,
        skipped=Counter(skipped) + Counter(lost),
        strict=strict,
    )
