"""The causal policy: any decoder-only Transformers model; an action is a generated token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import DataError, ModelError
from upslope.policies import attention, layout
from upslope.policies.linear_head import action_scores, head_scores
from upslope.policies.sampling import Sampling
from upslope.policies.text import check_known, encode, encode_completion, end_ids
from upslope.policies.transformers_policy import TransformersPolicy
from upslope.records import Batch, Prompt, Rollout, Scores, StopReason

_PROBE_TOLERANCE = 5e-5  # of the largest logit
_PROBE_LOGIT = 100.0


class CausalPolicy(TransformersPolicy):
    """Scores generated tokens by a Transformers causal language model, with or without a critic.

    The arguments are TransformersPolicy's. Raises: ModelError when the model has no output head to read from, or does
    not know the tokenizer's end of sequence.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **held: Any) -> None:
        super().__init__(model, tokenizer, **held)
        if self._base.get_output_embeddings() is None:
            raise ModelError(f"{type(self._base).__name__} has no output embeddings, so it is no causal language model")
        self.packs_rows = self.shares_prompts = self.chunks_head = False
        self._probe()

    @property
    def _head(self) -> nn.Module:
        head: nn.Module = self._base.get_output_embeddings()
        return head

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a row."""
        return end_ids(self._base, self.tokenizer)

    @property
    def backend(self) -> Mapping[str, str]:
        """How batches are scored: each part in the fast way where the model was seen to give the same logits by it."""
        return {
            "rows": "packed" if self.packs_rows else "padded",
            "prompts": "shared" if self.shares_prompts else "computed for every row",
            "head": "in chunks" if self.chunks_head else "whole",
        }

    @property
    def takes_chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self.tokenizer.chat_template is not None

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its tokens; see text.encode. Raises: ModelError for a token beyond the model's vocabulary."""
        return self._known(encode(self.tokenizer, prompt))

    def room(self, prompt: Prompt) -> int | None:
        """How many tokens may follow an encoded prompt, where the model says so."""
        return None if self.context_length is None else self.context_length - len(prompt.tokens)

    def begun(self, prompt: Prompt, actions: Sequence[int]) -> Prompt:
        """The encoded prompt as the engine computes it for a row that goes on after these actions: with them."""
        return dataclasses.replace(prompt, tokens=(*prompt.tokens, *actions))

    def demonstration(self, prompt: Prompt, completion: Any) -> Rollout:
        """The prompt and a text as the model would write it, ended, as a rollout of log-probability 0.

        Raises: DataError when there is no text, or the two exceed the model's context.
        """
        encoded = self.encode(prompt)
        actions = encode_completion(self.tokenizer, prompt, completion)
        check_known(f"the completion of {prompt.name}", actions, self._vocabulary)
        room = self.room(encoded)
        if room is not None and len(actions) > room:
            raise DataError(
                f"{prompt.name} and its completion have {len(encoded.tokens) + len(actions)} tokens, which "
                f"exceeds the model's context of {self.context_length}; shorten it or leave it out"
            )
        return self.row(encoded, actions, (0.0,) * len(actions), text=completion, stop_reason="eos")

    def row(
        self, prompt: Prompt, actions: Sequence[int], logprobs: Sequence[float], *, text: str, stop_reason: StopReason
    ) -> Rollout:
        """An encoded prompt and what was written after it, as a rollout."""
        first = len(prompt.tokens) - 1
        return Rollout(
            prompt=prompt,
            group=0,
            sample=0,
            tokens=(*prompt.tokens, *actions),
            actions=tuple(actions),
            positions=tuple(range(first, first + len(actions))),
            engine_logprobs=tuple(logprobs),
            text=text,
            stop_reason=stop_reason,
        )

    def micro_batches(self, batch: Batch, *, max_tokens: int) -> list[Tensor]:
        """Row indices of pieces that compute at most max_tokens tokens each (a longer row stands alone)."""
        packed, found = self._segments(batch, with_last=True)
        return [torch.tensor(rows) for rows in layout.plan(found, max_tokens=max_tokens, packed=packed)]

    def computed_tokens(self, batch: Batch) -> int:
        """Tokens that one forward over the batch computes, those that fill up its end included."""
        packed, found = self._segments(batch, with_last=True)
        tokens = layout.cost(found, packed=packed)
        return layout.filled(tokens) if packed else tokens

    def score(self, batch: Batch, *, sampling: Sampling, entropy: bool = False, values: bool = False) -> Scores:
        """Log-probabilities [M] of the actions, and on request entropy [M], values [M] and bootstrap [B].

        bootstrap is V at the row's last token, and 0 where the row terminated. Differentiable unless under no_grad.

        Raises: ModelError when values are asked of a policy without a critic.
        """
        value_head = self._value_head() if values else None
        laid = self._lay_out(batch, with_last=values)
        with self._precision():
            if self.chunks_head:
                hidden = self._hidden(self._base.base_model, laid)
                decided = hidden[laid.actions]
                found = head_scores(
                    cast(nn.Linear, self._head), decided, batch.actions, sampling=sampling, entropy=entropy
                )
            else:
                logits, hidden = self._own_logits(laid)
                found = action_scores(logits, batch.actions, sampling=sampling, entropy=entropy)
            if value_head is None:
                return Scores(*found)
            if self.module.critic is not None:
                hidden = self._hidden(self.module.critic, laid)
        read = value_head(hidden[torch.cat([laid.actions, laid.last])])
        bootstrap = read[len(laid.actions) :].masked_fill(batch.terminated, 0.0)
        return Scores(*found, read[: len(laid.actions)], bootstrap)

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states [M, H] at every action's position: what the output head reads."""
        laid = self._lay_out(batch, with_last=False)
        with self._precision():
            return self._hidden(self._base.base_model, laid)[laid.actions]

    def distributions(self, batch: Batch, *, max_tokens: int = 4096) -> Iterator[Tensor]:
        """The model's own logits [m, K] at every action, chunk by chunk in the batch's order."""
        for rows in torch.arange(batch.num_rows).split(max(1, max_tokens // int(batch.row_lengths.max()))):
            with self._precision():
                logits, _ = self._own_logits(self._lay_out(batch.select(rows), with_last=False))
            yield logits

    def _segments(self, batch: Batch, *, with_last: bool) -> tuple[bool, list[layout.Segment]]:
        """Whether the batch's rows are packed, and its segments.

        Neither packed rows nor an explicit mask know a sliding window, so those are for rows that fit one; and packed
        attention drops nothing out.
        """
        window = getattr(self._base.config.get_text_config(), "sliding_window", None)
        fits = window is None or int(batch.row_lengths.max()) <= int(window)
        packed = self.packs_rows and fits and not self._dropouts.acting
        return packed, layout.segments(batch, share=self.shares_prompts and fits, with_last=with_last)

    def _lay_out(self, batch: Batch, *, with_last: bool) -> layout.Layout:
        packed, found = self._segments(batch, with_last=with_last)
        return layout.arrange(batch, found, packed=packed, pad_id=self.pad_id, dtype=self._base.dtype)

    def _hidden(self, trunk: Any, laid: layout.Layout) -> Tensor:
        """Last hidden states [R * T, H] of the layout's tokens."""
        hidden: Tensor = trunk(**_arguments(laid)).last_hidden_state
        return hidden.flatten(0, 1)

    def _own_logits(self, laid: layout.Layout, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logits [M, V] of the actions by the model's own forward, and all last hidden states [R * T, H].

        The model's head runs on the gathered hidden states (times `scale`) alone: whatever the model does to its logits
        after it still applies.
        """
        seen: list[Tensor] = []

        def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(args[0].flatten(0, 1))
            return (scale * seen[0][laid.actions][None],)

        handle = self._head.register_forward_pre_hook(gather)
        try:
            logits: Tensor = self.model(**_arguments(laid)).logits[0]
        finally:
            handle.remove()
        return logits, seen[0]

    @torch.no_grad()
    def _probe(self) -> None:
        """Take up each faster way of computing that gives this architecture's own logits of padded, separate rows."""
        batch = layout.probe(self._vocabulary).to(self.device)

        def logits() -> Tensor:
            return self._own_logits(self._lay_out(batch, with_last=False))[0]

        expected, own = logits(), self._base.config._attn_implementation
        self.shares_prompts = True
        if own == "sdpa" and self.device.type == "cpu":
            self._set_attention(attention.NAME)
            self.packs_rows = True
            self.packs_rows = _agree(logits, expected)
        if not self.packs_rows:
            self._set_attention(own)
            self.shares_prompts = _agree(logits, expected)
        if isinstance(self._head, nn.Linear):
            laid = self._lay_out(batch, with_last=False)
            scale = _PROBE_LOGIT / float(expected.abs().max())  # large enough for a soft cap to show
            scaled, _ = self._own_logits(laid, scale=scale)
            trunk = self._base.base_model
            self.chunks_head = _agree(lambda: self._head(scale * self._hidden(trunk, laid)[laid.actions]), scaled)

    def _set_attention(self, name: str) -> None:
        for model in (self._base, self.module.critic, self._reference):
            if model is not None:
                model.config._attn_implementation = name


def _agree(compute: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether computing succeeds, and gives what is expected up to the dtype's rounding."""
    try:
        actual = compute().float()
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ModelError):
        return False  # an architecture that refuses the arguments
    tolerance = _PROBE_TOLERANCE if expected.dtype == torch.float32 else 1e3 * _PROBE_TOLERANCE
    return bool((actual - expected.float()).abs().max() <= tolerance * expected.float().abs().max())


def _arguments(laid: layout.Layout) -> dict[str, Any]:
    arguments = {"input_ids": laid.input_ids, "position_ids": laid.position_ids, "attention_mask": laid.mask}
    packed = {} if laid.blocks is None else {"blocks": laid.blocks}
    return {**arguments, **packed, "use_cache": False}
