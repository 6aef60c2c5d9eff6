"""Ensembles: several models that answer as one, by vote or by the average of their probabilities."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from upslope.engines.sampling import row_keys, sample_tokens
from upslope.errors import RecipeError
from upslope.evaluation.sources import Model, name_of
from upslope.records import Prompt, Rollout

By = Literal["average", "vote"]


@dataclass(frozen=True)
class Ensemble:
    """Several models as one candidate of `evaluate`, `compare` and `select`.

    by: "vote" takes the answer that most members give, of texts as of labels, and the earliest member's where votes are
    equal; "average" chooses a label by the mean of the members' probabilities (classifiers with one list of labels).
    Sampled members have random numbers of their own, so that one model, named several times, votes with itself
    (self-consistency, Wang et al. 2022, arXiv:2203.11171).
    Raises: RecipeError without two members.
    """

    members: tuple[Model, ...]
    by: By = "vote"

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if len(self.members) < 2:
            raise RecipeError(f"an ensemble has two members at least, and here are {len(self.members)}")

    @property
    def name(self) -> str:
        """What it is called in results: its members, joined by +."""
        return "+".join(map(name_of, self.members))


Candidate = Model | Ensemble


def candidate(text: str, *, by: By) -> Candidate:
    """The candidate that a command line names: A+B+C is an ensemble, unless there is such a file or folder."""
    names = text.split("+")
    return text if len(names) == 1 or Path(text).exists() else Ensemble(tuple(names), by=by)


def voted(answers: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    """Of each row the first rollout whose text (trimmed) most members wrote; answers are each member's rows.

    What failed has no vote; where all failed, the first one stands.
    """
    found = []
    for row in zip(*answers, strict=True):
        valid = [rollout for rollout in row if rollout.failure is None]
        votes = Counter(rollout.text.strip() for rollout in valid).most_common(1)  # of equals, the one seen first
        found.append(next((r for r in valid if r.text.strip() == votes[0][0]), row[0]))
    return found


def averaged(
    prompts: Sequence[Prompt], listed: Sequence[Sequence[Rollout]], *, samples: int, greedy: bool, seed: int
) -> list[Rollout]:
    """Labels drawn from the mean over members of p(label), `samples` of every prompt, in order.

    listed [members]: each one's rollouts of every label of every prompt (Engine.every_answer). Drawn as the engine of a
    single model draws: an ensemble of equals answers as any of them does.
    """
    by_label: dict[tuple[int, int], Rollout] = {}
    total: defaultdict[tuple[int, int], float] = defaultdict(float)
    for rollout in (rollout for rows in listed for rollout in rows):
        place = (rollout.group, rollout.actions[0])
        by_label.setdefault(place, rollout)
        total[place] += math.exp(rollout.engine_logprobs[0]) / len(listed)
    labels = 1 + max((label for _, label in by_label), default=0)
    mean = torch.tensor([[total[group, label] for label in range(labels)] for group in range(len(prompts))])
    logits = mean.log().repeat_interleave(samples, 0)
    numbers = torch.arange(samples).repeat(len(prompts))
    ids = torch.tensor([prompt.id for prompt in prompts]).repeat_interleave(samples)
    if greedy:
        chosen = logits.argmax(1)
    else:
        chosen, _ = sample_tokens(logits, row_keys(seed, ids, numbers), torch.zeros_like(ids))
    found = []
    for row, label in enumerate(chosen.tolist()):
        group = row // samples
        logprob = float(logits[row, label])
        failure = None if math.isfinite(logprob) else "non-finite logits"
        rollout = by_label[group, label]
        found.append(rollout.replace(sample=row % samples, engine_logprobs=(logprob,), failure=failure))
    return found
