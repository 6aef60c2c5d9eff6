"""Judged completions as rows: pairs, rankings and ratings of a task's prompts, encoded once, too long ones left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from upslope.errors import DataError
from upslope.policies.policy import Policy
from upslope.records import Prompt, Rollout
from upslope.tasks.preferences import contradictions
from upslope.training.session import Session


@dataclass(frozen=True, slots=True)
class Judged:
    """One prompt's judged completions as rows, the best first; a rated one stands alone."""

    prompt: Prompt
    rows: tuple[Rollout, ...]

    def grouped(self, group: int) -> list[Rollout]:
        """The rows as members of a group."""
        return [row.replace(group=group) for row in self.rows]


def judged_rows(policy: Policy, prompt: Prompt) -> tuple[Rollout, ...]:
    """The rows of a prompt's judged completions, the best first.

    Raises: DataError where the prompt has none, or a row exceeds the model's context.
    """
    columns = prompt.columns
    if "ranking" in columns:
        texts = columns["ranking"]
    elif "chosen" in columns and "rejected" in columns:
        texts = [columns["chosen"], columns["rejected"]]
    elif "rating" in columns and "completion" in columns:
        texts = [columns["completion"]]
    else:
        raise DataError(
            f"{prompt.name} has no judged completions: columns chosen and rejected, ranking, or completion and "
            "rating, as the task 'preferences' gives them"
        )
    return tuple(policy.demonstration(prompt, text) for text in texts)


def read_judged(session: Session, prompts: Sequence[Prompt], *, part: str) -> list[Judged]:
    """Every prompt's judged completions, but for those with a row of more than model.max_length tokens; how many those
    are stands in the log, as do pairs that contradict each other.

    part: "training" or "held_out", for the log. Raises: DataError where none is left.
    """
    limit = session.recipe.model.max_length or getattr(session.policy, "max_length", None)
    found = [Judged(prompt, judged_rows(session.policy, prompt)) for prompt in prompts]
    kept = [each for each in found if limit is None or max(len(row.tokens) for row in each.rows) <= limit]
    counts = Counter(too_long=len(found) - len(kept), contradictory=contradictions(prompts))
    if not kept:
        raise DataError(f"all {len(found)} judged prompts have a row of more than {limit} tokens (model.max_length)")
    if counts.total() and session.state.step == 0:
        session.run.log("judged", step=0, part=part, items=len(kept), **counts)
    return kept
