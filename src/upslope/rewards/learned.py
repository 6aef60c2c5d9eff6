"""The score of a learned reward model, or of several. Imports no torch before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from upslope.errors import RewardError
from upslope.rewards.language_model import resolved

if TYPE_CHECKING:
    from upslope.policies.reward import RewardPolicy
    from upslope.records import Rollout


@dataclass(frozen=True)
class LearnedReward:
    """A batch function: scores of completions by reward models; made by `reward_model`.

    As with `Likelihood`, the models are loaded once a process, in the worker while it starts. What they read is text,
    through their own tokenizers and templates: they need share nothing with the policy.
    """

    models: tuple[str, ...]
    pessimism: float
    max_tokens: int
    device: str

    __name__ = "reward_model"  # of instances: what the term is called

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for model in self.models:
            _load(model, self.device)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], log_extra: Any = None) -> list[float]:
        """One number a row; NaN, for which the row is dropped and counted, where a model cannot read all of it.

        Of several models, their disagreement is logged for each row as the metric `reward_model_std`.
        """
        texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        pairs = list(zip(prompts, texts, strict=True))
        by_row = list(zip(*(self._scores(model, pairs) for model in self.models), strict=True))
        if len(self.models) == 1:
            return [row[0] for row in by_row]
        spreads = [stdev(row) if all(map(math.isfinite, row)) else math.nan for row in by_row]
        if log_extra is not None:
            log_extra("reward_model_std", spreads)
        return [fmean(row) - self.pessimism * spread for row, spread in zip(by_row, spreads, strict=True)]

    def _scores(self, model: str, pairs: Sequence[tuple[Any, str]]) -> list[float]:
        from upslope.records import Prompt

        policy = _load(model, self.device)
        rows = [policy.demonstration(Prompt(0, p if isinstance(p, str) else tuple(p)), text) for p, text in pairs]
        readable = [place for place, row in enumerate(rows) if 0 < len(row.tokens) <= policy.max_length]
        found = [math.nan] * len(rows)
        scores = score_rows(policy, [rows[place] for place in readable], max_tokens=self.max_tokens)
        for place, score in zip(readable, scores, strict=True):
            found[place] = score
        return found


def reward_model(
    model: str | Sequence[str], *, pessimism: float = 0.0, max_tokens: int = 4096, device: str = "cpu"
) -> LearnedReward:
    """The score of a reward model; of several, mean - pessimism * (sample) standard deviation over them.

    model: a run of method "reward_model", a folder, a hub id, or any AutoModelForSequenceClassification with one label;
    or a list of them, whose lower confidence bound is then paid. max_tokens are computed at a time. Scores have no
    common zero unless the models were trained with one (`reward_model.centering_coef`).
    Raises: ModelError where a run has no model yet; RewardError for pessimism without an ensemble, and as the worker
    starts where a model cannot be loaded.
    Source: Coste et al. 2024, arXiv:2310.02743 (conservative ensembles; theirs subtract the variance).
    """
    names = (model,) if isinstance(model, str) else tuple(model)
    if not names:
        raise RewardError("reward 'reward_model' is given no model; name a run or a folder")
    if pessimism and len(names) < 2:
        raise RewardError(f"pessimism is {pessimism:g}, but one reward model has no spread; give a list of two or more")
    return LearnedReward(tuple(resolved(name) for name in names), float(pessimism), max_tokens, device)


def score_rows(policy: RewardPolicy, rows: Sequence[Rollout], *, max_tokens: int) -> list[float]:
    """The score of each row, without gradient, max_tokens computed at a time."""
    return [math.fsum(scores) for scores in score_actions(policy, rows, max_tokens=max_tokens)]


def score_actions(policy: RewardPolicy, rows: Sequence[Rollout], *, max_tokens: int) -> list[list[float]]:
    """The scores of each row's actions, without gradient: one of the row, or one a token where it is judged so."""
    import torch

    from upslope.records import collate

    found: list[list[float]] = [[] for _ in rows]
    if not rows:
        return found
    batch = collate(rows)[0].to(policy.device)
    with torch.inference_mode():
        for picked in policy.micro_batches(batch, max_tokens=max_tokens):
            piece = batch.select(picked)
            for row, scores in zip(picked.tolist(), piece.split_rows(policy.action_scores(piece)), strict=True):
                found[row] = scores.double().tolist()
    return found


@cache
def _load(model: str, device: str) -> RewardPolicy:
    from upslope.policies.loading import load_policy

    held: dict[str, Any] = {"critic": None, "keep_reference": False, "lora": None, "gradient_checkpointing": False}
    held |= {"labels": ("reward",), "dtype": "float32", "freeze": (), "seed": 0}
    return load_policy(model, kind="reward", device=device, **held)  # type: ignore[return-value]
