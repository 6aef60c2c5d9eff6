"""The engine of single-pass policies: one forward a distinct prompt, from which all of its samples are drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from upslope.engines.sampling import row_keys, sample_tokens
from upslope.errors import ModelError
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling, warp
from upslope.policies.single_pass import SinglePassPolicy
from upslope.records import Prompt, Rollout, collate
from upslope.stopwatch import span

_FORWARD_TOKENS = 4096
Kept = tuple[Sequence[int], Sequence[float]]
"""The first decisions of a row with their log-probabilities."""


class SinglePassEngine:
    """Draws labels by the policy's own forward, on the policy's own weights: nothing is copied or cached."""

    def __init__(self) -> None:
        self.version = 0
        self.backend: Mapping[str, str] = {}
        self._policy: SinglePassPolicy | None = None

    def load(self, policy: Policy, *, version: int) -> None:
        """Sample from this policy's present weights from now on, and stamp rollouts with the version.

        Raises: ModelError when the policy is no single-pass one.
        """
        if not isinstance(policy, SinglePassPolicy):
            raise ModelError(f"the single-pass engine samples labels, which a {type(policy).__name__} does not give")
        self.backend = {"decoder": "transformers, one pass", "linear": "torch"}
        self._policy, self.version = policy, version

    def rest(self) -> None:
        """Sample nothing until the next load; there is no memory to give back."""
        self._policy = None

    def sample(self, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, seed: int) -> list[Rollout]:
        """group_size rollouts of every (encoded) prompt, in order; see engine.Engine."""
        return self._drawn(prompts, [((), ())] * len(prompts), group_size=group_size, sampling=sampling, seed=seed)

    def branch(
        self, rollouts: Sequence[Rollout], kept: Sequence[int], *, num_branches: int, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """num_branches rollouts with each one's first kept[i] decisions and new ones after; see BranchingEngine."""
        prompts = [rollout.prompt for rollout in rollouts]
        begun = [(row.actions[:count], row.engine_logprobs[:count]) for row, count in zip(rollouts, kept, strict=True)]
        return self._drawn(prompts, begun, group_size=num_branches, sampling=sampling, seed=seed)

    def _drawn(
        self,
        prompts: Sequence[Prompt],
        kept: Sequence[Kept],
        *,
        group_size: int,
        sampling: Sampling,
        seed: int,
    ) -> list[Rollout]:
        """group_size rollouts a prompt, in order, whose first decisions are those kept."""
        policy = self._loaded()
        seen: Counter[int] = Counter()
        rows: list[tuple[int, int]] = []  # group, sample
        for group, prompt in enumerate(prompts):
            rows += [(group, seen[prompt.id] + sample) for sample in range(group_size)]
            seen[prompt.id] += group_size
        ids = torch.tensor([(prompts[group].id, sample) for group, sample in rows], dtype=torch.int64).view(-1, 2)
        keys = row_keys(seed, ids[:, 0], ids[:, 1])
        blanks = [policy.blank(prompt) for prompt in prompts]
        with torch.inference_mode():
            logits = self._logits(policy, blanks)
            with span("sample"):
                begun = [kept[group] for group, _ in rows]
                found = [logits[group] for group, _ in rows]
                actions, logprobs = _draw(policy, found, begun, keys.to(policy.device), sampling)
        return [
            self._rollout(policy, blanks[group], group, sample, actions[row], logprobs[row])
            for row, (group, sample) in enumerate(rows)
        ]

    def every_answer(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Rollout]:
        """A rollout for every label that may be drawn for every (encoded) prompt, in order, with its log-probability.

        Raises: ModelError where a row has several decisions, whose combinations are too many.
        """
        policy = self._loaded()
        blanks = [policy.blank(prompt) for prompt in prompts]
        with torch.inference_mode():
            found = self._logits(policy, blanks)
            if any(len(logits) > 1 for logits in found):
                raise ModelError("algorithm.expected lists every answer: too many where a row has several decisions")
            logprobs = [warp(logits, sampling).log_softmax(1)[0].tolist() for logits in found]
        return [
            self._rollout(policy, blank, group, label, [label], [logprob])
            for group, blank in enumerate(blanks)
            for label, logprob in enumerate(logprobs[group])
            if logprob > -math.inf or math.isnan(logprob)
        ]

    def _loaded(self) -> SinglePassPolicy:
        if self._policy is None:
            raise ModelError("the engine has no weights yet; call load(policy, version=...) first")
        return self._policy

    def _rollout(
        self,
        policy: SinglePassPolicy,
        blank: Rollout,
        group: int,
        sample: int,
        actions: list[int],
        logprobs: list[float],
    ) -> Rollout:
        failure = None if all(map(math.isfinite, logprobs)) else "non-finite logits"
        return policy.filled(blank, actions).replace(
            group=group, sample=sample, engine_logprobs=tuple(logprobs), version=self.version, failure=failure
        )

    def _logits(self, policy: SinglePassPolicy, blanks: Sequence[Rollout]) -> list[Tensor]:
        """Logits [m, K] of the decisions of each row."""
        if not blanks:
            return []
        batch = collate(blanks)[0].to(policy.device)
        found: list[Tensor] = [torch.empty(0)] * len(blanks)
        with span("prefill"):
            for rows in policy.micro_batches(batch, max_tokens=_FORWARD_TOKENS):
                piece = batch.select(rows)
                for row, logits in zip(rows.tolist(), piece.split_rows(policy.logits(piece)), strict=True):
                    found[row] = logits
        return found


def _draw(
    policy: SinglePassPolicy,
    logits: Sequence[Tensor],
    kept: Sequence[Kept],
    keys: Tensor,
    sampling: Sampling,
) -> tuple[list[list[int]], list[list[float]]]:
    """Actions and log-probabilities of every row, whose decisions have logits [m, K] and are taken in order; the first
    ones are those kept, with their log-probabilities."""
    actions = [list(decided) for decided, _ in kept]
    logprobs = [list(found) for _, found in kept]
    start = len(policy.labels)
    for position in range(max(map(len, logits), default=0)):
        rows = [row for row, found in enumerate(logits) if len(actions[row]) == position < len(found)]
        if not rows:
            continue
        now = torch.stack([logits[row][position] for row in rows])
        if policy.transitions is not None:
            previous = torch.tensor([actions[row][-1] if actions[row] else start for row in rows])
            now = now.masked_fill(~policy.transitions[previous].to(now.device), float("-inf"))
        now = warp(now, sampling)
        if sampling.greedy:
            best, chosen = now.max(1)
            found_logprobs = best - now.logsumexp(1)
        else:
            places = torch.full((len(rows),), position, device=now.device)
            chosen, found_logprobs = sample_tokens(now, keys[rows], places)
        for row, action, logprob in zip(rows, chosen.tolist(), found_logprobs.tolist(), strict=True):
            actions[row].append(action)
            logprobs[row].append(logprob)
    return actions, logprobs
