"""The embedded engine: Transformers' own forward with a key-value cache, prompts computed once a group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from upslope.engines.sampling import row_keys, sample_tokens
from upslope.errors import ModelError
from upslope.policies.causal import CausalPolicy
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling, warp
from upslope.records import Prompt, Rollout, StopReason


@dataclass(slots=True)
class _Row:
    """One row while it is being generated."""

    prompt: Prompt
    group: int
    sample: int
    actions: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    stop_reason: StopReason | None = None


class LocalEngine:
    """Samples with the policy's own model in this process.

    The weights are the policy's own, so after `load` they are equal by construction. At most max_rows rows are
    generated at a time; finished rows leave the batch.
    """

    def __init__(self, *, max_rows: int) -> None:
        self.max_rows = max_rows
        self.version = 0
        self._policy: CausalPolicy | None = None

    def load(self, policy: Policy, *, version: int) -> None:
        """Sample from this policy from now on, and stamp rollouts with the version.

        Raises: ModelError when the policy is not a causal one.
        """
        if not isinstance(policy, CausalPolicy):
            raise ModelError(f"the local engine samples from causal policies, not from a {type(policy).__name__}")
        self._policy, self.version = policy, version

    def sample(self, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, seed: int) -> list[Rollout]:
        """group_size rollouts of every (encoded) prompt, in order; see engine.Engine.

        Raises: ModelError before a policy is loaded, for a prompt that leaves no room in the model's context, or for an
        architecture without a key-value cache.
        """
        policy = self._loaded()
        seen: Counter[int] = Counter()
        rows = []
        for group, prompt in enumerate(prompts):
            first = seen[prompt.id]
            rows += [_Row(prompt, group, sample) for sample in range(first, first + group_size)]
            seen[prompt.id] += group_size
        self._check_context(policy, prompts, sampling)
        training = policy.module.training
        policy.module.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(rows), self.max_rows):
                    _generate(policy, rows[start : start + self.max_rows], sampling, seed)
        finally:
            policy.module.train(training)
        return [_finish(row, self.version) for row in rows]

    def _loaded(self) -> CausalPolicy:
        if self._policy is None:
            raise ModelError("the engine has no weights yet; call load(policy, version=...) first")
        return self._policy

    @staticmethod
    def _check_context(policy: CausalPolicy, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        limit = policy.context_length
        longest = max(prompts, key=lambda prompt: len(prompt.tokens), default=None)
        if limit and longest and len(longest.tokens) + sampling.max_new_tokens > limit:
            raise ModelError(
                f"prompt {longest.id} has {len(longest.tokens)} tokens, which with max_new_tokens = "
                f"{sampling.max_new_tokens} exceeds the model's context of {limit}"
            )


def _generate(policy: CausalPolicy, rows: list[_Row], sampling: Sampling, seed: int) -> None:
    device = policy.device
    keys = row_keys(seed, torch.tensor([r.prompt.id for r in rows]), torch.tensor([r.sample for r in rows])).to(device)
    logits, cache, mask, lengths = _prefill(policy, rows)
    active = rows
    for step in range(sampling.max_new_tokens):
        tokens, logprobs = _draw(warp(logits, sampling), keys, step, sampling)
        for row, token, logprob in zip(active, tokens.tolist(), logprobs.tolist(), strict=True):
            row.actions.append(token)
            row.logprobs.append(logprob)
            row.stop_reason = _stopped(row, policy, sampling)
        alive = torch.tensor([i for i, row in enumerate(active) if row.stop_reason is None], device=device)
        if not len(alive) or step + 1 == sampling.max_new_tokens:
            return
        if len(alive) < len(active):
            active = [active[i] for i in alive.tolist()]
            keys, tokens, mask, lengths = keys[alive], tokens[alive], mask[alive], lengths[alive]
            cache.batch_select_indices(alive)
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], 1)
        output = policy.run(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=(lengths + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits, cache = output.logits[:, -1], output.past_key_values


def _prefill(policy: CausalPolicy, rows: Sequence[_Row]):  # type: ignore[no-untyped-def]
    """Compute every distinct prompt once, left-padded: next-token logits [B, V], cache, mask [B, P], lengths [B]."""
    prompts: dict[int, Prompt] = {row.group: row.prompt for row in rows}
    index = {group: i for i, group in enumerate(prompts)}
    width = max(len(prompt.tokens) for prompt in prompts.values())
    ids = torch.full((len(prompts), width), policy.pad_id)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts.values()):
        ids[i, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[i, width - len(prompt.tokens) :] = 1
    ids, mask = ids.to(policy.device), mask.to(policy.device)
    output = policy.run(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        use_cache=True,
        logits_to_keep=1,
    )
    expand = torch.tensor([index[row.group] for row in rows], device=policy.device)
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise ModelError(f"{type(policy.model).__name__} keeps no key-value cache, which the local engine samples with")
    cache.batch_select_indices(expand)
    return output.logits[:, -1][expand], cache, mask[expand], mask.sum(1)[expand]


def _draw(logits: Tensor, keys: Tensor, step: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if not sampling.greedy:
        return sample_tokens(logits, keys, step)
    best = logits.max(1)
    return best.indices, best.values - logits.logsumexp(1)


def _stopped(row: _Row, policy: CausalPolicy, sampling: Sampling) -> StopReason | None:
    if row.actions[-1] in policy.eos_ids:
        row.text = policy.tokenizer.decode(row.actions[:-1], skip_special_tokens=True)
        return "eos"
    if sampling.stop:
        written = policy.tokenizer.decode(row.actions, skip_special_tokens=False)  # a stop may be a special token
        if any(stop in written for stop in sampling.stop):
            text = policy.tokenizer.decode(row.actions, skip_special_tokens=True)
            row.text = text[: min((text.index(stop) for stop in sampling.stop if stop in text), default=len(text))]
            return "stop"
    if len(row.actions) == sampling.max_new_tokens:
        row.text = policy.tokenizer.decode(row.actions, skip_special_tokens=True)
        return "length"
    return None


def _finish(row: _Row, version: int) -> Rollout:
    assert row.stop_reason is not None
    first = len(row.prompt.tokens) - 1
    return Rollout(
        prompt=row.prompt,
        group=row.group,
        sample=row.sample,
        tokens=(*row.prompt.tokens, *row.actions),
        actions=tuple(row.actions),
        positions=tuple(range(first, first + len(row.actions))),
        engine_logprobs=tuple(row.logprobs),
        text=row.text,
        stop_reason=row.stop_reason,
        version=version,
        failure=None if all(map(math.isfinite, row.logprobs)) else "non-finite logits",
    )
