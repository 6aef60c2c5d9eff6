"""What the contract suites know of a kind of policy: how to make one, rows for it, and the answers to expect of it.

Nothing here computes by the policy's own code: oracles are plain Transformers models on one row at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from upslope.policies.loading import KINDS, load_policy
from upslope.policies.tiny import tiny_model
from upslope.records import Rollout


@dataclass(frozen=True)
class Kind:
    """How a suite makes a policy, batches for it, and the answers to expect of it.

    name is the tiny model, kind the entry of loading.KINDS. rows(policy) gives rollouts of several lengths in groups.
    logits(policy, rollout) gives the logits [m, K] of each of the row's actions, and hidden(policy, rollout) the states
    [m + 1, H] where the critic reads each action and, last, the row's end; both of the plain model. ended(rollout, id)
    is the row with that id as what it ends in. noisy are the settings of its config that hold a dropout probability.
    ways are the policy's switches of how it computes, each as attributes to set. sharpness multiplies random weights.
    """

    name: str
    kind: str
    rows: Callable[[Any], list[Rollout]]
    logits: Callable[[Any, Rollout], torch.Tensor]
    hidden: Callable[[Any, Rollout], torch.Tensor]
    ended: Callable[[Rollout, int], Rollout]
    noisy: tuple[str, ...]
    labels: tuple[str, ...] = ()
    ways: tuple[dict[str, bool], ...] = ({},)
    computes_equal_rows_once: bool = False
    sharpness: float = 4.0

    @property
    def auto(self) -> Any:
        """Transformers' class of its models."""
        return KINDS[self.kind].model

    def build(
        self, *, seed=0, critic=None, keep_reference=False, checkpoint=False, lora=None, dtype="float32", **config
    ):
        """A policy with weights that make mistakes visible; config are settings of the Transformers config."""
        held = {"critic": critic, "keep_reference": keep_reference}
        if config:
            torch.manual_seed(seed)
            labels = {"id2label": dict(enumerate(self.labels))} if self.labels else {}
            policy = KINDS[self.kind].policy(*tiny_model(self.name, auto=self.auto, **labels, **config), **held)
            if checkpoint:
                policy.enable_gradient_checkpointing()
        else:
            policy = load_policy(
                self.name,
                kind=self.kind,
                labels=self.labels,
                **held,
                dtype=dtype,
                lora=lora,
                freeze=(),
                gradient_checkpointing=checkpoint,
                device="cpu",
                seed=seed,
            )
        if critic:
            torch.manual_seed(seed + 1)  # the head starts at zero, where every mistake looks right
            torch.nn.init.normal_(policy.module.value_head.linear.weight)
            torch.nn.init.normal_(policy.module.value_head.linear.bias)
        return sharpened(policy, self.sharpness)


def sharpened(policy, factor):
    """Random tiny models say nearly the same at every place; larger weights make each mistake visible."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return policy


def widen(policy):
    """Float64 throughout: Transformers' RMS norms would go through float32 whatever the dtype."""
    policy.module.double()
    for module in policy.module.modules():
        if isinstance(module, LlamaRMSNorm | T5LayerNorm):
            module.forward = functools.partial(_rms_norm, module)


def _rms_norm(module, hidden):
    return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)


def draws(policy, seed):
    """A function that draws so many token ids, special ones excluded."""
    generator = torch.Generator().manual_seed(seed)
    size = policy.model.get_input_embeddings().weight.shape[0]
    return lambda count: tuple(torch.randint(3, size, (count,), generator=generator).tolist())


def trunk_of(policy):
    """The model whose states the critic reads."""
    return policy.module.critic or policy.model.base_model
