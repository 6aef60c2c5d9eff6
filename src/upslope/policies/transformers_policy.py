"""What every policy made of a Transformers model shares: weights, critic, reference, dropout, freezing, saving."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import ModelError
from upslope.policies.dropout import Dropouts
from upslope.policies.heads import ValueHead
from upslope.policies.products import use_gemm
from upslope.policies.quiet import quiet_transformers
from upslope.policies.text import check_known, pieces
from upslope.records import Prompt


class Modules(nn.Module):
    """All weights under stable names: model, and where present value_head and critic."""

    model: PreTrainedModel
    value_head: ValueHead | None
    critic: PreTrainedModel | None

    def __init__(self, model: PreTrainedModel, value_head: ValueHead | None, critic: PreTrainedModel | None) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head
        self.critic = critic


class TransformersPolicy:
    """A Transformers model with its tokenizer, with or without a critic and a frozen reference; kinds of policy derive.

    critic: None; "head", a value head on the model's own last hidden states; or "separate", a value head on a copy of
    the model's trunk. autocast: compute in this dtype while the weights, which small steps must not round away, stay in
    their own. A frozen copy of the weights is the reference when keep_reference is set (with LoRA the
    reference is the model with its adapters off, and no copy is made).

    Raises: ModelError where the model does not know the tokenizer's end of sequence.
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
        self._vocabulary: int = self._base.get_input_embeddings().weight.shape[0]
        if tokenizer.eos_token_id is not None:
            check_known("the end of sequence", [tokenizer.eos_token_id], self._vocabulary)
        use_gemm(model)
        hidden_size = self._base.config.get_text_config(decoder=True).hidden_size
        self.module = Modules(
            model,
            ValueHead(hidden_size).to(model.device) if critic else None,
            copy.deepcopy(self._base.base_model) if critic == "separate" else None,
        )
        self._reference = None if self._lora or not keep_reference else _frozen(copy.deepcopy(model))
        self._checkpointing = False
        self._dropouts = Dropouts(self.module)
        self._dropouts.set(False)
        self.module.eval()

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
    def pad_id(self) -> int:
        """What fills unused slots of a forward; never read, so any valid id serves."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    @property
    def backend(self) -> Mapping[str, str]:
        """How batches are scored where there are several ways, by part."""
        return {}

    @property
    def takes_chats(self) -> bool:
        """Whether a chat goes through a template of the model's own: policies that read plain text have none."""
        return False

    def cuts(self, prompt: Prompt) -> bool:  # noqa: ARG002
        """Whether encoding the prompt leaves out the end of its text: never, unless a kind of policy says so."""
        return False

    def action_vectors(self) -> Tensor:
        """The rows [V, H] of the output head, detached: one vector a token."""
        vectors: Tensor = self._base.get_output_embeddings().weight
        return vectors.detach()

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; see text.pieces."""
        return pieces(self.tokenizer, tokens)

    @contextmanager
    def reference(self) -> Iterator[Self]:
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

    def _known(self, prompt: Prompt) -> Prompt:
        """The encoded prompt. Raises: ModelError for a token beyond the model's vocabulary."""
        check_known(f"{prompt.name}", prompt.tokens, self._vocabulary)
        return prompt

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _value_head(self) -> ValueHead:
        """The critic's head. Raises: ModelError for a policy without a critic."""
        if self.module.value_head is None:
            raise ModelError(
                "values were asked of a policy without a critic; build it with critic='head' or 'separate'"
            )
        return self.module.value_head


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).eval()
