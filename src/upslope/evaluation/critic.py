"""The critic that serves as a control: what two models know of the luck in an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from upslope.errors import ModelError
from upslope.evaluation.control import centred
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling, warp
from upslope.records import Rollout, collate

_CONTROL_ACTIONS = 256
"""Actions whose distributions over the whole vocabulary are held at a time."""


class Critic:
    """f(s, a) = log p_model(a|s) - log p_base(a|s): what training made likelier is what it found to be good.

    A critic of whole vocabularies at the price of two forwards: where rewards are regularised by the KL to the base,
    the log-ratio is, up to the coefficient, the trained policy's own optimal advantage.
    Source: Rafailov et al. 2024, arXiv:2404.12358, eq. 7.
    """

    def __init__(self, model: Policy, base: Policy) -> None:
        self._model, self._base = model, base

    @torch.no_grad()
    def controls(self, rollouts: Sequence[Rollout], policy: Policy, *, sampling: Sampling) -> list[float]:
        """sum_t f(s_t, a_t) - sum_b pi(b|s_t) f(s_t, b) of every rollout that policy sampled: 0 in the mean.

        0 of a rollout without actions. Raises: ModelError where the critic chooses from other actions.
        """
        found = [0.0] * len(rollouts)
        for rows in _pieces(rollouts):
            batch = collate([rollouts[row] for row in rows])[0].to(policy.device)
            known = {id(p): p for p in (policy, self._model, self._base)}
            logits = {key: torch.cat([chunk.float() for chunk in p.distributions(batch)]) for key, p in known.items()}
            own, up, down = (logits[id(p)] for p in (policy, self._model, self._base))
            if not own.shape == up.shape == down.shape:
                raise ModelError(f"the control chooses from {up.shape[1]} actions and the model from {own.shape[1]}")
            ratios = up.log_softmax(1) - down.log_softmax(1)
            control = centred(ratios, warp(own, sampling).log_softmax(1), batch.actions)
            for row, values in zip(rows, batch.split_rows(control), strict=True):
                found[row] = float(values.sum())
        return found


def _pieces(rollouts: Sequence[Rollout]) -> Iterator[list[int]]:
    """Rows that have actions, a few at a time."""
    rows: list[int] = []
    held = 0
    for row, rollout in enumerate(rollouts):
        if not rollout.actions or rollout.failure == "non-finite logits":
            continue
        if rows and held + len(rollout.actions) > _CONTROL_ACTIONS:
            yield rows
            rows, held = [], 0
        rows.append(row)
        held += len(rollout.actions)
    if rows:
        yield rows
