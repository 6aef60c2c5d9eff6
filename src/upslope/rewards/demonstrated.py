"""Rewards that a model learned from demonstrations: recovered from its logits, or against a reference. Imports no torch
before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upslope.rewards.language_model import completion_row, load_causal, resolved

if TYPE_CHECKING:
    from torch import Tensor

    from upslope.policies.causal import CausalPolicy
    from upslope.records import Batch, Rollout


@dataclass(frozen=True)
class DemonstratedReward:
    """A batch function: what a causal model's logits say of each action; made by `inverse_q` and `implicit`.

    reference: None for the inverse soft Bellman operator on `model`, else what its log-probabilities are held against.
    """

    model: str
    reference: str | None
    scale: float
    discount: float
    per_action: bool
    max_tokens: int
    device: str
    name: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in self._names:
            load_causal(name, self.device)

    @property
    def __name__(self) -> str:
        """What the term is called."""
        return self.name

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.model,) if self.reference is None else (self.model, self.reference)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]]
    ) -> list[Any]:
        """One number a row, or one an action; NaN, for which a row is dropped and counted, beyond a model's context."""
        texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        found: list[list[float]] | None = None
        for name, sign in zip(self._names, (1.0, -1.0), strict=False):
            policy = load_causal(name, self.device)
            rows = [self._row(policy, *each) for each in zip(prompts, texts, completion_ids, strict=True)]
            values = self._values(policy, rows)
            signed = [[sign * value for value in row] for row in values]
            found = (
                signed if found is None else [_added(a, b, self.per_action) for a, b in zip(found, signed, strict=True)]
            )
        assert found is not None
        scaled = [[self.scale * value for value in row] for row in found]
        if not self.per_action:
            return [math.fsum(row) for row in scaled]
        return [row[: len(ids)] for row, ids in zip(scaled, completion_ids, strict=True)]

    def _row(self, policy: CausalPolicy, prompt: Any, text: str, ids: Sequence[int]) -> Rollout | None:
        """What is read. After the actions of a cut row comes an end, unpaid: V' of the last one is the value there."""
        if not self.per_action:
            return completion_row(policy, prompt, text)
        end = () if ids[-1] in policy.eos_ids else (policy.tokenizer.eos_token_id,)
        return completion_row(policy, prompt, text, actions=(*ids, *end))

    def _values(self, policy: CausalPolicy, rows: Sequence[Rollout | None]) -> list[list[float]]:
        """Each row's actions valued by one model: r = Q - discount V', or log pi where there is a reference."""
        fitting = [row for row in rows if row is not None]
        per_row = iter(_by_logits(policy, fitting, self._of_actions, max_tokens=self.max_tokens))
        return [[math.nan] if row is None else next(per_row) for row in rows]

    def _of_actions(self, chosen: Tensor, values: Tensor, batch: Batch) -> Tensor:
        from upslope.losses import inverse_q_rewards

        if self.reference is not None:
            return chosen - values
        ended = chosen.new_zeros(batch.num_rows)
        return inverse_q_rewards(chosen, values, batch.num_actions, ended, gamma=self.discount)


def inverse_q(
    model: str, *, discount: float = 1.0, per_action: bool = False, max_tokens: int = 4096, device: str = "cpu"
) -> DemonstratedReward:
    """The reward that a run of method "inverse" recovered: sum over actions of Q - discount V', Q the logits.

    The end of the row counts as an action. At discount 1 it is log pi(completion | prompt) + V(prompt), so it differs
    between prompts by a constant: take a baseline by group. per_action pays each action its own; the policy's
    tokens must then be the model's. model: a run, a folder, a hub id or an embedded name.
    Source: Wulfmeier et al. 2024, arXiv:2409.01369.
    """
    return DemonstratedReward(resolved(model), None, 1.0, discount, per_action, max_tokens, device, "inverse_q")


def implicit(
    model: str,
    reference: str,
    *,
    scale: float = 1.0,
    per_action: bool = False,
    max_tokens: int = 4096,
    device: str = "cpu",
) -> DemonstratedReward:
    """scale (log pi_model - log pi_reference) of the completion and its end: what training has made likelier [nats].

    Of a supervised model and the one it began from, the reward that its demonstrations imply; of a DPO run with
    scale = beta, the reward that its pairs imply. The other arguments are as in `inverse_q`.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 5 (without its constant a prompt).
    """
    held = (max_tokens, device, "implicit")
    return DemonstratedReward(resolved(model), resolved(reference), scale, 1.0, per_action, *held)


def _added(mine: Sequence[float], other: Sequence[float], per_action: bool) -> list[float]:
    """Sums by action; of rows, whose two models may have other tokens, one sum."""
    if per_action and len(mine) == len(other):
        return [a + b for a, b in zip(mine, other, strict=True)]
    return [math.fsum(mine) + math.fsum(other)]


def _by_logits(
    policy: CausalPolicy,
    rows: Sequence[Rollout],
    of_actions: Callable[[Tensor, Tensor, Batch], Tensor],
    *,
    max_tokens: int,
) -> list[list[float]]:
    """of_actions(logit of each action, log-sum-exp of all logits there, piece) of each row's actions, by row."""
    import torch

    from upslope.records import collate

    found: list[list[float]] = [[] for _ in rows]
    if not rows:
        return found
    batch = collate(rows)[0].to(policy.device)
    with torch.inference_mode():
        for picked in policy.micro_batches(batch, max_tokens=max_tokens):
            piece = batch.select(picked)
            logits = torch.cat(list(policy.distributions(piece, max_tokens=max_tokens))).float()
            chosen = logits.gather(1, piece.actions[:, None])[:, 0]
            values = logits.logsumexp(1)
            split = piece.split_rows(of_actions(chosen, values, piece))
            for row, per_action in zip(picked.tolist(), split, strict=True):
                found[row] = per_action.double().tolist()
    return found
