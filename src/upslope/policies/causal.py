"""The causal policy: any decoder-only Transformers model; an action is a generated token."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import DataError, ModelError
from upslope.policies import layout
from upslope.policies.dropout import Dropouts
from upslope.policies.heads import ValueHead
from upslope.policies.quiet import quiet_transformers
from upslope.policies.sampling import Sampling, warp
from upslope.records import Batch, Message, Prompt, Scores

_PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class _Outputs:
    logits: Tensor
    values: Tensor | None
    last_values: Tensor | None


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

    Raises: ModelError when the model has no output head to read from.
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
        self._autocast = autocast
        self._lora = hasattr(model, "disable_adapter")
        self._base: PreTrainedModel = model.get_base_model() if self._lora else model
        self._head = self._base.get_output_embeddings()
        if self._head is None:
            raise ModelError(f"{type(self._base).__name__} has no output embeddings, so it is no causal language model")
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
        self.shares_prompts = self._probe_sharing()

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
    def _end_id(self) -> int:
        """The id that ends a written row: the tokenizer's end of sequence."""
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so no completion can be ended")
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """What fills unused slots of a forward; never read, so any valid id serves."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def encode(self, prompt: Prompt) -> Prompt:
        """The prompt with its tokens: a chat through the model's template, plain text as the tokenizer gives it.

        Raises: DataError for a chat without a chat template or that the template refuses, or a prompt without tokens.
        """
        plain = isinstance(prompt.content, str)
        ids = self.tokenizer(prompt.content)["input_ids"] if plain else self._encode_chat(prompt)
        if not ids:
            raise DataError(f"prompt {prompt.id} has no tokens; a causal model needs at least one to start from")
        return dataclasses.replace(prompt, tokens=tuple(int(i) for i in ids))

    def _encode_chat(self, prompt: Prompt) -> Sequence[int]:
        if self.tokenizer.chat_template is None:
            raise DataError(f"prompt {prompt.id} is a chat but the model has no chat template; give plain text instead")
        messages = [dict(message) for message in cast(Sequence[Message], prompt.content)]
        try:
            ids: Sequence[int] = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # a template is a (sandboxed) program of the model's author
            raise DataError(f"prompt {prompt.id} is refused by the model's chat template: {error}") from error
        return ids

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Tokens of a completion as the model would write it: no leading special tokens, one end of row."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*(int(i) for i in ids), self._end_id)

    def micro_batches(self, batch: Batch, *, max_tokens: int) -> list[Tensor]:
        """Row indices of pieces that compute at most max_tokens tokens each (a longer row stands alone)."""
        found = layout.segments(batch, share=self.shares_prompts and self._may_share(batch), with_last=True)
        return [torch.tensor(rows) for rows in layout.plan(found, max_tokens=max_tokens)]

    def score(self, batch: Batch, *, sampling: Sampling, entropy: bool = False, values: bool = False) -> Scores:
        """Log-probabilities [M] of the actions, and on request entropy [M], values [M] and bootstrap [B].

        bootstrap is V at the row's last token, and 0 where the row terminated. Differentiable unless under no_grad.
        """
        outputs = self._forward(batch, values=values)
        logits = warp(outputs.logits, sampling, actions=batch.actions)
        normaliser = logits.logsumexp(1)
        logprobs = logits.gather(1, batch.actions[:, None])[:, 0] - normaliser
        bootstrap = None
        if outputs.last_values is not None:
            bootstrap = outputs.last_values.masked_fill(batch.terminated, 0.0)
        return Scores(logprobs, _entropy(logits, normaliser) if entropy else None, outputs.values, bootstrap)

    def distributions(self, batch: Batch, *, max_tokens: int = 4096) -> Iterator[Tensor]:
        """The model's own logits [m, K] at every action, chunk by chunk in the batch's order."""
        for rows in torch.arange(batch.num_rows).split(max(1, max_tokens // int(batch.row_lengths.max()))):
            logits = self._forward(batch.select(rows), values=False).logits
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
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def _forward(self, batch: Batch, *, values: bool) -> _Outputs:
        share = self.shares_prompts and self._may_share(batch)
        found = layout.segments(batch, share=share, with_last=values)
        inputs = layout.arrange(batch, found, pad_id=self.pad_id, dtype=self._base.dtype)
        arguments = {"input_ids": inputs.input_ids, "position_ids": inputs.position_ids, "use_cache": False}
        arguments["attention_mask"] = inputs.mask
        trunk_hidden: list[Tensor] = []

        def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            flat = args[0].flatten(0, 1)
            trunk_hidden.append(flat)
            return (flat[inputs.actions][None],)

        # The model's own head runs on the gathered hidden states alone: whatever it does to its logits still applies.
        handle = self._head.register_forward_pre_hook(gather)
        try:
            output = self.run(**arguments)
        finally:
            handle.remove()
        if not values:
            return _Outputs(output.logits[0], None, None)
        if self.module.value_head is None:
            raise ModelError(
                "values were asked of a policy without a critic; build it with critic='head' or 'separate'"
            )
        hidden = trunk_hidden[0]
        if self.module.critic is not None:
            with self._precision():
                hidden = self.module.critic(**arguments).last_hidden_state.flatten(0, 1)
        read = self.module.value_head(hidden[torch.cat([inputs.actions, inputs.last])])
        return _Outputs(output.logits[0], read[: len(inputs.actions)], read[len(inputs.actions) :])

    def _may_share(self, batch: Batch) -> bool:
        """An explicit mask knows no sliding window, so prompts are shared only in rows that fit one."""
        window = getattr(self._base.config.get_text_config(), "sliding_window", None)
        return window is None or int(batch.row_lengths.max()) <= int(window)

    @torch.no_grad()
    def _probe_sharing(self) -> bool:
        """Whether this architecture takes an explicit tree mask: shared and separate rows must agree."""
        batch = layout.probe(self._base.get_input_embeddings().weight.shape[0]).to(self.device)
        self.shares_prompts = False
        separate = self._forward(batch, values=False).logits
        self.shares_prompts = True
        try:
            shared = self._forward(batch, values=False).logits
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False  # an architecture that refuses a four-dimensional mask
        scale = 1.0 if shared.dtype == torch.float32 else 1e3
        return bool((shared.float() - separate.float()).abs().max() <= _PROBE_TOLERANCE * scale)


def _entropy(logits: Tensor, normaliser: Tensor) -> Tensor:
    """H = logZ - E[logit], exact over the support."""
    probabilities = (logits - normaliser[:, None]).exp()
    return normaliser - (probabilities * logits.masked_fill(probabilities == 0, 0.0)).sum(1)


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).eval()
