"""The causal policy: any decoder-only Transformers model; an action is a generated token."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import ModelError
from upslope.policies import attention, layout, text
from upslope.policies.dropout import Dropouts
from upslope.policies.heads import ValueHead
from upslope.policies.linear_head import action_scores, head_scores
from upslope.policies.products import use_gemm
from upslope.policies.quiet import quiet_transformers
from upslope.policies.sampling import Sampling
from upslope.records import Batch, Prompt, Scores

_PROBE_TOLERANCE = 5e-5  # of the largest logit
_PROBE_LOGIT = 100.0


class _Modules(nn.Module):
    """All weights under stable names: model, and where present value_head and critic."""

    model: PreTrainedModel
    value_head: ValueHead | None
    critic: PreTrainedModel | None

    def __init__(self, model: PreTrainedModel, value_head: ValueHead | None, critic: PreTrainedModel | None) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head
        self.critic = critic


class CausalPolicy:
    """Scores generated tokens by a Transformers causal language model, with or without a critic.

    critic: None; "head", a value head on the model's own last hidden states; or "separate", a value head on a copy of
    the model's trunk. autocast: compute in this dtype while the weights, which small steps must not round away, stay in
    their own. A frozen copy of the weights is the reference when keep_reference is set (with LoRA the
    reference is the model with its adapters off, and no copy is made).

    Raises: ModelError when the model has no output head to read from, or does not know the tokenizer's end of sequence.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        critic: str | None = None,
        keep_reference: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.autocast = autocast
        self._lora = hasattr(model, "disable_adapter")
        self._base: PreTrainedModel = model.get_base_model() if self._lora else model
        self._head = self._base.get_output_embeddings()
        if self._head is None:
            raise ModelError(f"{type(self._base).__name__} has no output embeddings, so it is no causal language model")
        self._vocabulary: int = self._base.get_input_embeddings().weight.shape[0]
        if tokenizer.eos_token_id is not None:
            text.check_known("the end of sequence", [tokenizer.eos_token_id], self._vocabulary)
        use_gemm(model)
        hidden_size = self._base.config.get_text_config().hidden_size
        self.module = _Modules(
            model,
            ValueHead(hidden_size).to(model.device) if critic else None,
            copy.deepcopy(self._base.base_model) if critic == "separate" else None,
        )
        self._reference = None if self._lora or not keep_reference else _frozen(copy.deepcopy(model))
        self._checkpointing = False
        self._dropouts = Dropouts(self.module)
        self._dropouts.set(False)
        self.module.eval()
        self.packs_rows = self.shares_prompts = self.chunks_head = False
        self._probe()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self._base.device
        return device

    @property
    def context_length(self) -> int | None:
        """How many tokens a row may have, where the model says so."""
        limit = getattr(self._base.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a row: the generation config's and the tokenizer's."""
        configured = getattr(self._base.generation_config, "eos_token_id", None)
        ids = set(configured if isinstance(configured, (list, tuple)) else [configured])
        return frozenset(int(i) for i in ids | {self.tokenizer.eos_token_id} if i is not None)

    @property
    def pad_id(self) -> int:
        """What fills unused slots of a forward; never read, so any valid id serves."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its tokens; see text.encode. Raises: ModelError for a token beyond the model's vocabulary."""
        encoded = text.encode(self.tokenizer, prompt)
        text.check_known(f"prompt {prompt.id}", encoded.tokens, self._vocabulary)
        return encoded

    def encode_completion(self, completion: str) -> tuple[int, ...]:
        """Tokens of a completion as the model would write it; see text.encode_completion.

        Raises: ModelError for a token beyond the model's vocabulary.
        """
        tokens = text.encode_completion(self.tokenizer, completion)
        text.check_known(f"completion {completion[:20]!r}", tokens, self._vocabulary)
        return tokens

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; see text.pieces."""
        return text.pieces(self.tokenizer, tokens)

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
        if values and self.module.value_head is None:
            raise ModelError(
                "values were asked of a policy without a critic; build it with critic='head' or 'separate'"
            )
        laid = self._lay_out(batch, with_last=values)
        with self._precision():
            if self.chunks_head:
                hidden = self._hidden(self._base.base_model, laid)
                decided = hidden[laid.actions]
                found = head_scores(self._head, decided, batch.actions, sampling=sampling, entropy=entropy)
            else:
                logits, hidden = self._own_logits(laid)
                found = action_scores(logits, batch.actions, sampling=sampling, entropy=entropy)
            if not values:
                return Scores(*found)
            if self.module.critic is not None:
                hidden = self._hidden(self.module.critic, laid)
        assert self.module.value_head is not None
        read = self.module.value_head(hidden[torch.cat([laid.actions, laid.last])])
        bootstrap = read[len(laid.actions) :].masked_fill(batch.terminated, 0.0)
        return Scores(*found, read[: len(laid.actions)], bootstrap)

    def distributions(self, batch: Batch, *, max_tokens: int = 4096) -> Iterator[Tensor]:
        """The model's own logits [m, K] at every action, chunk by chunk in the batch's order."""
        for rows in torch.arange(batch.num_rows).split(max(1, max_tokens // int(batch.row_lengths.max()))):
            with self._precision():
                logits, _ = self._own_logits(self._lay_out(batch.select(rows), with_last=False))
            yield logits

    @contextmanager
    def reference(self) -> Iterator[CausalPolicy]:
        """Within the context, this policy scores as the frozen model that training started from.

        Raises: ModelError when no reference was kept.
        """
        if self._lora:
            flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
            try:
                with self.model.disable_adapter():
                    yield self
            finally:
                for parameter, flag in flags:  # peft turns every adapter's gradient on again, frozen ones included
                    parameter.requires_grad_(flag)
            return
        if self._reference is None:
            raise ModelError("this policy keeps no reference model; build it with keep_reference=True")
        reference = copy.copy(self)
        reference.model = reference._base = self._reference
        reference._head = self._reference.get_output_embeddings()
        yield reference

    @contextmanager
    def dropout(self, enabled: bool) -> Iterator[None]:
        """Within the context the model's own dropout acts, when enabled: for supervised training only."""
        self._dropouts.set(enabled)
        self.module.train(enabled or self.module.training)
        try:
            yield
        finally:
            self._dropouts.set(False)
            self.module.train(self._checkpointing)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute layers in the backward pass; the module stays in train mode, with every dropout at zero.

        Raises: ModelError for an architecture that cannot.
        """
        try:
            self._base.activation_checkpointing_enable()
            if self.module.critic is not None:
                self.module.critic.activation_checkpointing_enable()
        except ValueError as error:
            raise ModelError(f"{type(self._base).__name__} cannot recompute its layers: {error}") from error
        if self._lora:
            self._base.enable_input_require_grads()
        self._checkpointing = True
        self.module.train()

    def freeze(self, patterns: Sequence[str]) -> int:
        """Freeze the model's parameters whose names match a shell pattern; returns how many weights are frozen.

        Raises: ModelError for a pattern that matches nothing, or when nothing is left to train.
        """
        names = dict(self.model.named_parameters())
        for pattern in patterns:
            matched = [name for name in names if fnmatch.fnmatch(name, pattern)]
            if not matched:
                raise ModelError(f"freeze pattern {pattern!r} matches no parameter, such as {next(iter(names))!r}")
            for name in matched:
                names[name].requires_grad_(False)
        if not any(parameter.requires_grad for parameter in names.values()):
            raise ModelError(f"the freeze patterns {list(patterns)} leave nothing of the model to train")
        return sum(p.numel() for p in names.values() if not p.requires_grad)

    def save(self, folder: Path) -> None:
        """Write an ordinary Transformers folder, adapters merged; the critic, where present, lies beside it."""
        model = copy.deepcopy(self.model).merge_and_unload() if self._lora else self.model
        with quiet_transformers():
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def run(self, **arguments: Any) -> Any:
        """The model's own forward in the policy's precision: what scoring and the engine both call."""
        with self._precision():
            return self.model(**arguments)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

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


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).eval()
