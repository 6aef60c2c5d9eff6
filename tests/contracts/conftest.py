"""The policies and engines that the contract suites run over. A new kind joins by one line in POLICIES or ENGINES."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from upslope.engines.local import LocalEngine
from upslope.engines.transformers_forward import TransformersForward
from upslope.policies.causal import CausalPolicy
from upslope.policies.loading import load_policy
from upslope.policies.tiny import tiny_model
from upslope.records import Prompt, Rollout, collate


@dataclass(frozen=True)
class Kind:
    """How a suite makes a policy, batches for it, and the answers to expect of it.

    build(seed, critic, keep_reference, checkpoint, **config) makes one; rows(policy) gives rollouts of several lengths
    in groups; logits(policy, rollout) gives the logits [m, K] of each of the row's actions and hidden(policy, rollout)
    the last hidden state [H] of each of its tokens, both computed without the policy's own code. widen(policy) makes it
    compute in float64 throughout. noisy are the settings of its config that hold a dropout probability.
    """

    build: Callable[..., Any]
    rows: Callable[[Any], list[Rollout]]
    logits: Callable[[Any, Rollout], torch.Tensor]
    hidden: Callable[[Any, Rollout], torch.Tensor]
    widen: Callable[[Any], None]
    noisy: tuple[str, ...]


def _causal(name, *noisy):
    def build(*, seed=0, critic=None, keep_reference=False, checkpoint=False, lora=None, dtype="float32", **config):
        if config:
            torch.manual_seed(seed)
            policy = CausalPolicy(*tiny_model(name, **config), critic=critic, keep_reference=keep_reference)
            if checkpoint:
                policy.enable_gradient_checkpointing()
        else:
            policy = load_policy(
                name,
                critic=critic,
                keep_reference=keep_reference,
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
        return _sharpened(policy)

    return Kind(
        build=build,
        rows=_causal_rows,
        logits=_token_by_token,
        hidden=_hidden_token_by_token,
        widen=_widen,
        noisy=noisy,
    )


def _sharpened(policy):
    """Random tiny models say nearly the same at every place; larger weights make each mistake visible."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return policy


def _widen(policy):
    """Float64 throughout: Transformers' RMS norms would go through float32 whatever the dtype."""
    policy.module.double()
    for module in policy.module.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = functools.partial(_rms_norm, module)


def _rms_norm(module, hidden):
    return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)


def _causal_rows(policy) -> list[Rollout]:
    """Three prompts of 3, 9 and 1 tokens, with 2, 3 and 1 rows of 1 to 7 actions; one row decides in two turns."""
    generator = torch.Generator().manual_seed(5)
    size = policy.model.get_input_embeddings().weight.shape[0]

    def draw(count):
        return tuple(torch.randint(3, size, (count,), generator=generator).tolist())

    rollouts = []
    for group, (length, counts) in enumerate([(3, (5, 2)), (9, (1, 7, 3)), (1, (4,))]):
        prompt = Prompt(id=group, content="x", tokens=draw(length))
        for sample, count in enumerate(counts):
            rollouts.append(_row(prompt, group, sample, draw(count), ended=(group + sample) % 2 == 0))
    first = rollouts[0]
    two_turns = (*first.positions[:2], *(p + 3 for p in first.positions[2:]))
    tokens = (*first.tokens[:5], *draw(3), *first.tokens[5:])
    rollouts[0] = first.replace(tokens=tokens, positions=two_turns)
    return rollouts


def _row(prompt, group, sample, actions, *, ended):
    start = len(prompt.tokens) - 1
    return Rollout(
        prompt=prompt,
        group=group,
        sample=sample,
        tokens=prompt.tokens + actions,
        actions=actions,
        positions=tuple(range(start, start + len(actions))),
        engine_logprobs=(-1.0,) * len(actions),
        text="",
        stop_reason="eos" if ended else "length",
    )


@torch.no_grad()
def _token_by_token(policy, rollout):
    """Logits [m, K] of each action from the model's own forward over exactly the tokens before it, one row, no mask."""
    model = policy.model
    return torch.cat([model(torch.tensor([rollout.tokens[: at + 1]])).logits[:, -1] for at in rollout.positions])


@torch.no_grad()
def _hidden_token_by_token(policy, rollout):
    trunk = policy.module.critic or policy.model.base_model
    prefixes = [torch.tensor([rollout.tokens[: end + 1]]) for end in range(len(rollout.tokens))]
    return torch.cat([trunk(prefix).last_hidden_state[:, -1] for prefix in prefixes])


POLICIES = {
    "tiny-llama": _causal("tiny-llama", "attention_dropout"),
    "tiny-gpt2": _causal("tiny-gpt2", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
}


class TransformersEngine(LocalEngine):
    """The local engine on an architecture that its decoder does not know."""

    def _choose(self, policy):
        return TransformersForward(policy, max_rows=self._max_rows)


def _local(kernels, kind=LocalEngine):
    def build(*, max_rows=64, cache_gib=0.1):
        return kind(max_rows=max_rows, cache_gib=cache_gib, kernels=kernels)

    return build


ENGINES = {name: _local(name) for name in ("native", "onednn", "torch")}
ENGINES["transformers"] = _local("torch", TransformersEngine)


@pytest.fixture(params=POLICIES)
def kind(request):
    return POLICIES[request.param]


@pytest.fixture(params=ENGINES)
def make_engine(request):
    return ENGINES[request.param]


@pytest.fixture
def make_batch():
    """The batch of the given rollouts."""
    return lambda rollouts: collate(rollouts)[0]
