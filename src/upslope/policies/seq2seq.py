"""The encoder-decoder policy: translation, summaries; an action is a token that the decoder writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from upslope.errors import DataError, ModelError
from upslope.policies.linear_head import action_scores
from upslope.policies.sampling import Sampling
from upslope.policies.text import end_ids
from upslope.policies.transformers_policy import TransformersPolicy
from upslope.records import Batch, Prompt, Rollout, Scores, StopReason


@dataclass(frozen=True, slots=True)
class Pairs:
    """Distinct sources [U, S] and all decoder rows [B, T], padded on the right.

    of_source [B] names each row's source; actions [M] and last [B] are indices into the flattened [B * T] outputs.
    """

    source_ids: Tensor
    source_mask: Tensor
    decoder_ids: Tensor
    of_source: Tensor
    actions: Tensor
    last: Tensor


class Seq2SeqPolicy(TransformersPolicy):
    """Scores tokens written by a Transformers encoder-decoder (T5, BART, Marian), with or without a critic.

    A prompt's tokens are the source. The decoder's stream begins with the start token and, where the model forces one,
    its first token, which is no action.

    Raises: ModelError when the model has no encoder, no output head or no start token.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **held: Any) -> None:
        super().__init__(model, tokenizer, **held)
        if not self._base.config.is_encoder_decoder or self._base.get_output_embeddings() is None:
            raise ModelError(f"{type(self._base).__name__} is no encoder-decoder with an output head")
        generation = self._base.generation_config
        configured = (
            generation.decoder_start_token_id,
            getattr(self._base.config, "decoder_start_token_id", None),
            generation.bos_token_id,
        )
        start = next((int(i) for i in configured if i is not None), None)
        if start is None:
            raise ModelError(f"{type(self._base).__name__} names no decoder_start_token_id to begin with")
        forced = getattr(generation, "forced_bos_token_id", None)
        self.start = (start,) if forced is None else (start, int(forced))

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a row."""
        return end_ids(self._base, self.tokenizer)

    @property
    def _eos_id(self) -> int:
        """What ends a demonstration. Raises: ModelError when the tokenizer has no end of sequence."""
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so no completion can be ended")
        return int(self.tokenizer.eos_token_id)

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its source's tokens. Raises: DataError where there are none, or more than the model reads."""
        ids = self.tokenizer(prompt.text, verbose=False)["input_ids"]
        limit = self.context_length
        if not ids:
            raise DataError(f"{prompt.name} has no tokens to read")
        if limit is not None and len(ids) > limit:
            raise DataError(f"{prompt.name} has {len(ids)} tokens, which exceeds the {limit} that the model reads")
        return self._known(dataclasses.replace(prompt, tokens=tuple(int(i) for i in ids)))

    def room(self, prompt: Prompt) -> int | None:  # noqa: ARG002 - the source takes none of it
        """How many tokens the decoder may write, where the model says so."""
        return None if self.context_length is None else self.context_length - len(self.start)

    def begun(self, prompt: Prompt, actions: Sequence[int]) -> Prompt:  # noqa: ARG002
        """The encoded source, which a row that goes on after some actions is computed after as well."""
        return prompt

    def demonstration(self, prompt: Prompt, completion: Any) -> Rollout:
        """The source with a text as the decoder would write it, ended, as a rollout of log-probability 0.

        Raises: DataError where there is no text, or it is longer than the decoder writes.
        """
        if not isinstance(completion, str) or not completion:
            raise DataError(f"the completion of {prompt.name} is {completion!r}, which is no text to learn from")
        written = tuple(int(i) for i in self.tokenizer(text_target=completion, verbose=False)["input_ids"])
        forced = self.start[1:]
        actions = written[len(forced) :] if written[: len(forced)] == forced else written
        if not actions or actions[-1] not in self.eos_ids:
            actions = (*actions, self._eos_id)
        room = self.room(prompt)
        if room is not None and len(actions) > room:
            raise DataError(
                f"the completion of {prompt.name} has {len(actions)} tokens, which exceeds the {room} that the "
                "model's decoder writes; shorten it or leave it out"
            )
        encoded = self.encode(prompt)
        return self.row(encoded, actions, (0.0,) * len(actions), text=completion, stop_reason="eos")

    def row(
        self, prompt: Prompt, actions: Sequence[int], logprobs: Sequence[float], *, text: str, stop_reason: StopReason
    ) -> Rollout:
        """An encoded prompt and what the decoder wrote, as a rollout."""
        first = len(self.start) - 1
        return Rollout(
            prompt=prompt,
            group=0,
            sample=0,
            tokens=(*self.start, *actions),
            actions=tuple(actions),
            positions=tuple(range(first, first + len(actions))),
            engine_logprobs=tuple(logprobs),
            text=text,
            stop_reason=stop_reason,
            source=prompt.tokens,
        )

    def micro_batches(self, batch: Batch, *, max_tokens: int) -> list[Tensor]:
        """Row indices of pieces that compute at most max_tokens tokens each: the source's and the decoder's, padded.

        Every row counts with its source, though equal sources are encoded once: each has its own cross-attention. A
        longer row stands alone.
        """
        assert batch.source_lengths is not None
        lengths = torch.stack([batch.source_lengths, batch.row_lengths], 1).cpu()
        pieces: list[list[int]] = []
        for row in lengths.sum(1).argsort(descending=True, stable=True).tolist():
            if pieces and (len(pieces[-1]) + 1) * int(lengths[[*pieces[-1], row]].amax(0).sum()) <= max_tokens:
                pieces[-1].append(row)
            else:
                pieces.append([row])
        return [torch.tensor(rows) for rows in pieces]

    def score(self, batch: Batch, *, sampling: Sampling, entropy: bool = False, values: bool = False) -> Scores:
        """Log-probabilities [M] of the actions, and on request entropy [M], values [M] and bootstrap [B].

        bootstrap is V at the row's last token, and 0 where the row terminated.
        Raises: ModelError when values are asked of a policy without a critic.
        """
        value_head = self._value_head() if values else None
        pairs = self._pairs(batch)
        with self._precision():
            logits, hidden = self._logits(pairs)
            if values and self.module.critic is not None:
                hidden = _decoded(self.module.critic, pairs)
        found = action_scores(logits, batch.actions, sampling=sampling, entropy=entropy)
        if value_head is None:
            return Scores(*found)
        read = value_head(hidden[torch.cat([pairs.actions, pairs.last])])
        bootstrap = read[len(pairs.actions) :].masked_fill(batch.terminated, 0.0)
        return Scores(*found, read[: len(pairs.actions)], bootstrap)

    def states(self, batch: Batch) -> Tensor:
        """The decoder's last hidden states [M, H] at every action's position."""
        pairs = self._pairs(batch)
        with self._precision():
            return self._logits(pairs)[1][pairs.actions]

    def distributions(self, batch: Batch, *, max_tokens: int = 4096) -> Iterator[Tensor]:
        """The model's own logits [m, K] at every action, chunk by chunk in the batch's order."""
        for rows in torch.arange(batch.num_rows).split(max(1, max_tokens // int(batch.row_lengths.max()))):
            with self._precision():
                yield self._logits(self._pairs(batch.select(rows)))[0]

    def encoded(self, source_ids: Tensor, mask: Tensor) -> Tensor:
        """The encoder's states [U, S, H] of padded sources, in the policy's precision."""
        with self._precision():
            states: Tensor = self._base.get_encoder()(input_ids=source_ids, attention_mask=mask)[0]
            return states

    def _logits(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Logits [M, V] of the actions by the model's own forward, and the decoder's last hidden states [B * T, H].

        The model's head runs on the decided hidden states alone: what the model does to its logits after it applies.
        """
        model, seen = self._base, []

        def remember(_: nn.Module, __: Any, output: Any) -> None:
            seen.append(output[0].flatten(0, 1))

        def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].flatten(0, 1)[pairs.actions][None],)

        hooks = [
            model.get_decoder().register_forward_hook(remember),
            model.get_output_embeddings().register_forward_pre_hook(gather),
        ]
        try:
            output = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=_encoded(model, pairs)),
                attention_mask=pairs.source_mask[pairs.of_source],
                decoder_input_ids=pairs.decoder_ids,
                use_cache=False,
            )
        finally:
            for hook in hooks:
                hook.remove()
        return output.logits[0], seen[0]

    def _pairs(self, batch: Batch) -> Pairs:
        assert batch.source is not None
        assert batch.source_lengths is not None
        distinct: dict[tuple[int, ...], int] = {}
        sources = batch.source.split(batch.source_lengths.tolist())
        of_source = [distinct.setdefault(tuple(source.tolist()), len(distinct)) for source in sources]
        device = batch.tokens.device
        source_ids = _padded([torch.tensor(source, device=device) for source in distinct], self.pad_id)
        lengths = torch.tensor([len(source) for source in distinct], device=device)
        decoder_ids = _padded(batch.tokens.split(batch.row_lengths.tolist()), self.pad_id)
        starts = torch.arange(batch.num_rows, device=device) * decoder_ids.shape[1]
        return Pairs(
            source_ids,
            (torch.arange(source_ids.shape[1], device=device)[None] < lengths[:, None]).long(),
            decoder_ids,
            torch.tensor(of_source, device=device),
            batch.positions + starts.repeat_interleave(batch.num_actions),
            starts + batch.row_lengths - 1,
        )


def _padded(rows: Sequence[Tensor], pad_id: int) -> Tensor:
    padded: Tensor = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
    return padded


def _encoded(model: Any, pairs: Pairs) -> Tensor:
    """The encoder's states [B, S, H] of each row's source; every distinct source is computed once."""
    states: Tensor = model.get_encoder()(input_ids=pairs.source_ids, attention_mask=pairs.source_mask)[0]
    return states[pairs.of_source]


def _decoded(model: Any, pairs: Pairs) -> Tensor:
    """The decoder's last hidden states [B * T, H]."""
    states: Tensor = model.get_decoder()(
        input_ids=pairs.decoder_ids,
        encoder_hidden_states=_encoded(model, pairs),
        encoder_attention_mask=pairs.source_mask[pairs.of_source],
        use_cache=False,
    )[0]
    return states.flatten(0, 1)
