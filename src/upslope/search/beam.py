"""Beam search: the likeliest texts that keeping a few beginnings at a time can find, for every policy that writes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from upslope.engines.local import Writer, check_context, evaluating, finish, stopped
from upslope.engines.rows import Forward, Row
from upslope.engines.seq2seq_forward import Seq2SeqForward
from upslope.engines.transformers_forward import TransformersForward
from upslope.errors import ModelError
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling
from upslope.policies.seq2seq import Seq2SeqPolicy
from upslope.records import Prompt, Rollout

EarlyStopping = bool | Literal["never"]


class BeamEngine:
    """An engine that looks for the best texts: `sample` gives the group_size best of `width` beams, best first.

    A text of n tokens scores log p / n^length_penalty, which stands in its rollout's metrics as "beam_score"; forced
    first tokens count in neither. early_stopping decides when a prompt's search ends once `width` texts are finished:
    True, at once; False, when the best beginning, at its present length, is no better than the worst of them;
    "never", when no beginning can become better, however long. At most max_rows beginnings are computed at a time.
    Source: Wu et al. 2016, arXiv:1609.08144, section 7; the variants are Transformers' own.
    """

    def __init__(
        self,
        *,
        width: int,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        max_rows: int = 64,
    ) -> None:
        self.width, self.length_penalty, self.early_stopping = width, length_penalty, early_stopping
        self.version = 0
        self.backend: Mapping[str, str] = {"decoder": "transformers, beam search", "linear": "torch"}
        self._prompts = max(1, max_rows // width)
        self._policy: Writer | None = None

    def load(self, policy: Policy, *, version: int) -> None:
        """Search by this policy's present weights from now on. Raises: ModelError for a policy that writes nothing."""
        if not isinstance(policy, Writer):
            raise ModelError(f"beam search is for policies that write, not for a {type(policy).__name__}")
        self._policy, self.version = policy, version

    def rest(self) -> None:
        """Search nothing until the next load; there is no memory to give back."""
        self._policy = None

    def sample(self, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, seed: int) -> list[Rollout]:  # noqa: ARG002
        """The group_size best texts of every (encoded) prompt, best first; fewer where so many cannot be written.

        Log-probabilities are the model's own: of sampling, only max_new_tokens and stop play a part. Nothing is drawn,
        so the seed decides nothing.
        Raises: ModelError before a policy is loaded, for a group_size above the width, or for a prompt that leaves no
        room in the model's context.
        """
        policy = self._policy
        if policy is None:
            raise ModelError("the engine has no weights yet; call load(policy, version=...) first")
        if group_size > self.width:
            raise ModelError(f"{group_size} texts are asked of {self.width} beams; search with as many at least")
        check_context(policy, prompts, sampling)
        rows = [Row(prompt, group, 0) for group, prompt in enumerate(prompts)]
        searches: list[_Search] = []
        with torch.inference_mode(), evaluating(policy):
            forward = _forward(policy, self._prompts)
            while len(searches) < len(rows):
                searches += self._run(policy, forward, rows[len(searches) :][: self._prompts], sampling)
        return [
            finish(policy, row, self.version).replace(sample=rank, metrics={"beam_score": score})
            for search in searches
            for rank, (score, row) in enumerate(search.finished[:group_size])
        ]

    def every_answer(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Rollout]:  # noqa: ARG002
        """Raises: ModelError, for texts are too many to list."""
        raise ModelError("every answer cannot be listed by beam search, which finds the best")

    def _run(self, policy: Writer, forward: Forward, rows: Sequence[Row], sampling: Sampling) -> list[_Search]:
        """The finished searches of the first of these prompts that can go on together, one token a step."""
        forward.start(rows, max_new_tokens=sampling.max_new_tokens)
        count, logits = forward.admit(rows)
        active = searches = [_Search(self, policy, row, sampling) for row in rows[:count]]
        while True:
            assert logits is not None
            logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
            kept: list[int] = []
            first = 0
            for search in active:
                count = len(search.running)
                kept += [first + place for place in search.advance(logprobs[first : first + count])]
                first += count
            active = [search for search in active if search.running]
            if not active:
                return searches
            forward.keep(kept)
            tokens = [row.actions[-1] for search in active for row in search.running]
            logits = forward.step(torch.tensor(tokens, device=logprobs.device))


def _forward(policy: Writer, max_rows: int) -> Forward:
    if isinstance(policy, Seq2SeqPolicy):
        return Seq2SeqForward(policy, max_rows=max_rows, cache_bytes=None)
    return TransformersForward(policy, max_rows=max_rows, cache_bytes=None)


class _Search:
    """One prompt's search: beginnings that go on, likeliest first, and finished texts with scores, best first."""

    def __init__(self, engine: BeamEngine, policy: Writer, row: Row, sampling: Sampling) -> None:
        self._engine, self._policy, self._sampling = engine, policy, sampling
        self._endings = policy.eos_ids
        self._totals = torch.zeros(1, device=policy.device)
        self.running = [row]
        self.finished: list[tuple[float, Row]] = []

    def advance(self, logprobs: Tensor) -> list[int]:
        """Go on by one token, given its log-probabilities [R, V] after each beginning. Returns which of the R the new
        beginnings continue: none when the search is over.

        Candidates are enough for `width` to go on whatever ends; of those that end, only the `width` likeliest count.
        """
        width, vocabulary = self._engine.width, logprobs.shape[1]
        totals = (self._totals[:, None] + logprobs).flatten()
        best, index = totals.topk(min(max(2, 1 + len(self._endings)) * width, len(totals)))
        going: list[tuple[int, int, Row]] = []  # rank among the candidates, parent, beginning
        for rank, at in enumerate(index[best != -math.inf].tolist()):
            parent, token = divmod(at, vocabulary)
            row = _longer(self.running[parent], token, float(logprobs[parent, token]))
            row.stop_reason = stopped(row, self._policy, self._endings, self._sampling)
            if row.stop_reason is None:
                going.append((rank, parent, row))
            elif rank < width:
                self.finished.append((float(best[rank]) / len(row.actions) ** self._engine.length_penalty, row))
        self.finished = sorted(self.finished, key=lambda pair: -pair[0])[:width]
        going = going[:width]
        self._totals = best[[rank for rank, _, _ in going]]
        self.running = [row for _, _, row in going] if going and self._may_improve(len(going[0][2].actions)) else []
        return [parent for _, parent, _ in going] if self.running else []

    def _may_improve(self, length: int) -> bool:
        """Whether beginnings of so many tokens are worth going on with: see BeamEngine's early_stopping."""
        engine = self._engine
        if len(self.finished) < engine.width:
            return True
        if engine.early_stopping is True:
            return False
        if engine.early_stopping == "never" and engine.length_penalty > 0:
            length = self._sampling.max_new_tokens
        best = float(self._totals[0]) / float(length**engine.length_penalty)
        return best > self.finished[-1][0]


def _longer(row: Row, token: int, logprob: float) -> Row:
    return dataclasses.replace(row, actions=[*row.actions, token], logprobs=[*row.logprobs, logprob])
