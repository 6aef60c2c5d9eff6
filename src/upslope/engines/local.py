"""The embedded engine: samples in this process, from the policy's own weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from upslope.engines.architecture import UnknownArchitecture
from upslope.engines.paged import PagedForward
from upslope.engines.probe import proven_decoder
from upslope.engines.rows import Forward, Row
from upslope.engines.sampling import row_keys, sample_tokens
from upslope.engines.seq2seq_forward import Seq2SeqForward
from upslope.engines.transformers_forward import TransformersForward
from upslope.errors import ModelError
from upslope.policies.causal import CausalPolicy
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling, warp
from upslope.policies.seq2seq import Seq2SeqPolicy
from upslope.records import Prompt, Rollout, StopReason
from upslope.stopwatch import span

Writer = CausalPolicy | Seq2SeqPolicy
"""The policies that write token by token."""


class LocalEngine:
    """Samples from a policy that writes: prompts computed once a group, rows in and out as they finish.

    At most max_rows rows are in progress at a time, in cache_gib of key-value cache. kernels names what the linear
    layers are computed with (see kernels.linear); `backend` says what was chosen, and why where it is the slow way.
    """

    def __init__(self, *, max_rows: int, cache_gib: float, kernels: str) -> None:
        self._max_rows, self._cache_bytes, self._kernels = max_rows, int(cache_gib * 2**30), kernels
        self.version = 0
        self.backend: Mapping[str, str] = {}
        self._policy: Writer | None = None
        self._forward: Forward | None = None
        self._resting = False

    def load(self, policy: Policy, *, version: int) -> None:
        """Sample from this policy's present weights from now on, and stamp rollouts with the version.

        Raises: ModelError when the policy writes no tokens; KernelError when the kernels asked for cannot be had.
        """
        if not isinstance(policy, Writer):
            raise ModelError(f"the local engine samples from policies that write, not from a {type(policy).__name__}")
        known = self._forward if policy is self._policy else None
        self._policy = self._forward = None  # what fails half-way is not sampled from
        with span("load"), torch.inference_mode(), evaluating(policy):
            if known is None:
                known = self._choose(policy)
            else:
                known.load()
        self._policy, self._forward, self._resting, self.version = policy, known, False, version

    def rest(self) -> None:
        """Give back the memory of caches and copied weights until the next load, before which nothing is sampled."""
        if self._forward is not None:
            self._forward.rest()
        self._resting = True

    def _choose(self, policy: Writer) -> Forward:
        """The decoder where it is proven to compute this model, else Transformers' own forward."""
        if isinstance(policy, Seq2SeqPolicy):
            self.backend = {"decoder": "transformers, encoder-decoder", "linear": "torch"}
            return Seq2SeqForward(policy, max_rows=self._max_rows, cache_bytes=self._cache_bytes)
        try:
            decoder, slower = proven_decoder(policy, self._kernels)
        except UnknownArchitecture as unknown:
            forward = TransformersForward(policy, max_rows=self._max_rows, cache_bytes=self._cache_bytes)
            alike = "" if forward.pads else "; prompts of one length at a time, as it takes no position ids"
            self.backend = {"decoder": f"transformers, because {unknown}{alike}", "linear": "torch"}
            return forward
        linear = f"{decoder.kernel}, because {slower}" if slower else decoder.kernel
        self.backend = {"decoder": decoder.architecture.name, "linear": linear}
        return PagedForward(decoder, max_rows=self._max_rows, cache_bytes=self._cache_bytes)

    def sample(self, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, seed: int) -> list[Rollout]:
        """group_size rollouts of every (encoded) prompt, in order; see engine.Engine.

        Raises: ModelError before a policy is loaded, for a prompt that leaves no room in the model's context, or for a
        budget that does not hold one row.
        """
        policy = self._loaded()[0]
        rows = _rows(prompts, group_size)
        check_context(policy, prompts, sampling)
        self._write(rows, sampling, seed)
        return self._finished(rows)

    def branch(
        self, rollouts: Sequence[Rollout], kept: Sequence[int], *, num_branches: int, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """num_branches new ends of every rollout after its first kept[i] actions; see engine.BranchingEngine.

        What is kept is computed once for all of a rollout's branches, as a prompt is. Raises: ModelError as sample.
        """
        policy = self._loaded()[0]
        check_context(policy, [rollout.prompt for rollout in rollouts], sampling)
        rows = _rows([rollout.prompt for rollout in rollouts], num_branches)
        open_ = []
        for row in rows:
            rollout, count = rollouts[row.group], kept[row.group]
            if count < len(rollout.actions):
                row.actions, row.logprobs = list(rollout.actions[:count]), list(rollout.engine_logprobs[:count])
                row.prompt = policy.begun(row.prompt, row.actions)
                open_.append(row)
        self._write(open_, sampling, seed)
        for row in open_:
            row.prompt = rollouts[row.group].prompt
        written = {(row.group, row.sample): rollout for row, rollout in zip(open_, self._finished(open_), strict=True)}
        return [
            written.get((row.group, row.sample)) or rollouts[row.group].replace(group=row.group, sample=row.sample)
            for row in rows
        ]

    def _write(self, rows: list[Row], sampling: Sampling, seed: int) -> None:
        """Sample the rows to their ends."""
        policy, forward = self._loaded()
        try:
            with torch.inference_mode(), evaluating(policy):
                if rows:
                    _generate(policy, forward, rows, sampling, seed)
        except BaseException:  # an interrupt as well: what is half done must not be built upon
            forward.drop()
            raise

    def _finished(self, rows: Sequence[Row]) -> list[Rollout]:
        policy, forward = self._loaded()
        rollouts = [finish(policy, row, self.version) for row in rows]
        if any(rollout.failure for rollout in rollouts):
            forward.drop()
        return rollouts

    def every_answer(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Rollout]:  # noqa: ARG002
        """Raises: ModelError, for texts are too many to list."""
        raise ModelError(
            "every answer (algorithm.expected) can only be listed by a classifier, not where text is written"
        )

    def memory(self, prompts: Sequence[Prompt], *, group_size: int, max_new_tokens: int) -> tuple[int, int]:
        """Bytes of the engine's own copies of the weights, and of the cache that sampling these prompts takes at most.

        Raises: ModelError before a policy is loaded.
        """
        rows = [Row(prompt, group, i) for group, prompt in enumerate(prompts) for i in range(group_size)]
        return self._loaded()[1].memory(rows, max_new_tokens=max_new_tokens)

    def _loaded(self) -> tuple[Writer, Forward]:
        if self._policy is None or self._forward is None or self._resting:
            raise ModelError("the engine has no weights yet; call load(policy, version=...) first")
        return self._policy, self._forward


def _rows(prompts: Sequence[Prompt], count: int) -> list[Row]:
    """`count` rows a prompt; those of a prompt that stands there twice go on counting, so that all differ."""
    seen: Counter[int] = Counter()
    rows = []
    for group, prompt in enumerate(prompts):
        rows += [Row(prompt, group, seen[prompt.id] + sample) for sample in range(count)]
        seen[prompt.id] += count
    return rows


@contextmanager
def evaluating(policy: Policy) -> Iterator[None]:
    """Within the context the modules are in evaluation mode: some keep no cache in the other, and drop out."""
    training = policy.module.training
    policy.module.eval()
    try:
        yield
    finally:
        policy.module.train(training)


def check_context(policy: Writer, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Raises: ModelError for a prompt that is not encoded, or that leaves no room in the model's context."""
    empty = next((prompt for prompt in prompts if not prompt.tokens), None)
    if empty is not None:
        raise ModelError(f"{empty.name} has no tokens; give prompts as policy.encode(prompt) returns them")
    for prompt in prompts:
        room = policy.room(prompt)
        if room is not None and sampling.max_new_tokens > room:
            raise ModelError(
                f"{prompt.name} has {len(prompt.tokens)} tokens, after which the model's context has room for "
                f"{max(0, room)}, but max_new_tokens = {sampling.max_new_tokens}"
            )


def _generate(policy: Writer, forward: Forward, rows: list[Row], sampling: Sampling, seed: int) -> None:
    """Sample the rows to their ends, in order; as one leaves, the next enters where there is room."""
    device, endings = policy.device, policy.eos_ids
    keys = row_keys(seed, torch.tensor([r.prompt.id for r in rows]), torch.tensor([r.sample for r in rows])).to(device)
    forward.start(rows, max_new_tokens=sampling.max_new_tokens)
    active: list[int] = []
    logits: Tensor | None = None
    entered = 0
    while active or entered < len(rows):
        count, new = forward.admit(rows[entered:])
        active += range(entered, entered + count)
        entered += count
        parts = [part for part in (logits, new) if part is not None]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        with span("sample"):
            tokens = _draw(logits, keys, [rows[i] for i in active], torch.tensor(active, device=device), sampling)
            for i in active:
                rows[i].stop_reason = stopped(rows[i], policy, endings, sampling)
        alive = [place for place, i in enumerate(active) if rows[i].stop_reason is None]
        if len(alive) < len(active):
            forward.keep(alive)
            active, tokens = [active[place] for place in alive], tokens[alive]
        logits = forward.step(tokens) if active else None


def _draw(logits: Tensor, keys: Tensor, rows: Sequence[Row], index: Tensor, sampling: Sampling) -> Tensor:
    """One more action [B] for each of the rows, whose keys are keys[index]."""
    logits = warp(logits, sampling)
    if sampling.greedy:
        best, tokens = logits.max(1)
        logprobs = best - logits.logsumexp(1)
    else:
        positions = torch.tensor([len(row.actions) for row in rows], device=logits.device)
        tokens, logprobs = sample_tokens(logits, keys[index], positions)
    for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
        row.actions.append(token)
        row.logprobs.append(logprob)
    return tokens


def stopped(row: Row, policy: Writer, endings: frozenset[int], sampling: Sampling) -> StopReason | None:
    """Why the row ends with its last action, and then its text; None where it goes on."""
    if row.actions[-1] in endings:
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


def finish(policy: Writer, row: Row, version: int) -> Rollout:
    """The finished row as a rollout; one of non-finite logits says so in its failure."""
    assert row.stop_reason is not None
    rollout = policy.row(row.prompt, row.actions, row.logprobs, text=row.text, stop_reason=row.stop_reason)
    failure = None if all(map(math.isfinite, row.logprobs)) else "non-finite logits"
    return rollout.replace(group=row.group, sample=row.sample, version=version, failure=failure)
