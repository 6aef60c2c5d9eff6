"""How much memory a run will take at its peak, by parts, before it is started.

Weights, gradients and optimiser are counted; the engine says what it keeps; what a micro-batch takes is extrapolated
from small ones of the recipe's own model, whose tensors are counted as they are made and dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.doctor.findings import Findings
from upslope.doctor.live import LiveBytes
from upslope.doctor.load import Load
from upslope.doctor.machine import GIB, available_bytes, resident_bytes
from upslope.engines.local import LocalEngine
from upslope.evaluation.sources import sampling_of
from upslope.policies.causal import CausalPolicy
from upslope.policies.linear_head import chunk_rows
from upslope.policies.loading import count_weights
from upslope.policies.tiny import TINY_NAMES
from upslope.recipe import Recipe
from upslope.records import Batch, Prompt
from upslope.settings import ModelSettings
from upslope.training.launch import policy_of
from upslope.training.methods import by_policy_gradient, needs_reference, samples
from upslope.training.optimizer import apply_gradients, is_critic, make_optimizer, trainable

_ROW = 64  # tokens of a trial's rows
_MOMENTS = 2  # of AdamW
_NEARLY, _SHOWN = 0.9, 0.005  # of what is free; GiB


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes that a micro-batch takes at its peak, gradients of weights aside: fixed + by token and by action.

    No more than most_actions count: the logits of further ones take the place of those before them.
    """

    fixed: float
    token: float
    action: float
    most_actions: int | None

    def of(self, tokens: int, actions: int) -> int:
        """Bytes of a micro-batch of so many computed tokens and actions."""
        counted = actions if self.most_actions is None else min(actions, self.most_actions)
        return round(self.fixed + self.token * tokens + self.action * counted)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes of the training process at its peak, by part; the reward worker is a process of its own."""

    runtime: int
    weights: int
    reference: int
    critic: int
    optimiser: int
    engine_weights: int
    cache: int
    gradients: int
    activations: int

    @property
    def parts(self) -> dict[str, int]:
        """Part -> bytes, those that are there."""
        return {name: getattr(self, name) for name in self.__slots__ if getattr(self, name)}

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())


def forecast(recipe: Recipe, policy: CausalPolicy, engine: LocalEngine, load: Load, *, runtime: int) -> Forecast:
    """The peak of a run from the second step on, when the optimiser has its moments.

    runtime: what the process holds before the model. The engine rests during the update, but the two do not share
    memory as a sum of sizes would have it: what one frees lies in pieces between what stays, and the other's tensors
    are of other sizes. So both are counted; see docs/log.md for what was measured.
    """
    held = _bytes(trainable(policy.module).values())
    weights = _bytes(policy.model.parameters()) + _bytes(policy.model.buffers())
    return Forecast(
        runtime=runtime,
        weights=weights,
        reference=weights if needs_reference(recipe) and recipe.model.lora is None else 0,
        critic=_bytes(p for name, p in policy.module.named_parameters() if is_critic(name)),
        optimiser=_MOMENTS * held,
        **_sampling(recipe, engine, load),
        **_update(recipe, policy, load, held),
    )


def _sampling(recipe: Recipe, engine: LocalEngine, load: Load) -> dict[str, int]:
    """What the engine takes, for a step's prompts or an evaluation's."""
    group = recipe.algorithm.group_size if by_policy_gradient(recipe) else 2 * samples(recipe)
    new = recipe.sampling.max_new_tokens
    kept = [
        engine.memory(each, group_size=n, max_new_tokens=new) for each, n in ((load.prompts, group), (load.held_out, 1))
    ]
    return {"engine_weights": kept[0][0], "cache": max(cache for _, cache in kept)}


def _update(recipe: Recipe, policy: CausalPolicy, load: Load, gradients: int) -> dict[str, int]:
    """What the largest micro-batch takes, and the gradients beside it.

    With one micro-batch an optimiser step, gradients take the place of the activations that the backward pass lets go;
    with several, those of the first are there in the second.
    """
    activations = costs(recipe, policy).of(load.largest.tokens, load.largest.actions)
    beside = gradients if load.micro_batches > 1 else max(0, gradients - activations)
    return {"gradients": beside, "activations": activations}


def costs(recipe: Recipe, policy: CausalPolicy) -> Costs:
    """What micro-batches of the recipe's model take, from three small ones; leaves no gradient behind."""
    try:
        _backward(recipe, policy, _rows(policy, 1, 1))  # from here on gradients are added to
        few, more, busier = (_trial(recipe, policy, *size) for size in ((2, 32), (4, 16), (4, 32)))
    finally:
        policy.module.zero_grad(set_to_none=True)
    token = (more.bytes - few.bytes) / (more.tokens - few.tokens)
    action = (busier.bytes - more.bytes) / (busier.actions - more.actions)
    vocabulary = policy.model.get_output_embeddings().weight.shape[0]
    most = chunk_rows(vocabulary) if policy.chunks_head else None
    return Costs(few.bytes - token * few.tokens - action * few.actions, token, action, most)


@dataclass(frozen=True, slots=True)
class _Trial:
    tokens: int
    actions: int
    bytes: int


def _trial(recipe: Recipe, policy: CausalPolicy, rows: int, actions: int) -> _Trial:
    batch = _rows(policy, rows, actions)
    with LiveBytes() as live:
        _backward(recipe, policy, batch)
    return _Trial(policy.computed_tokens(batch), rows * actions, live.peak)


def _backward(recipe: Recipe, policy: CausalPolicy, batch: Batch) -> None:
    """Forward and backward of a batch through what the recipe's loss is made of."""
    settings, learns = recipe.algorithm, recipe.method == "policy_gradient"
    critic = learns and settings.needs_critic
    scores = policy.score(batch, sampling=sampling_of(recipe), entropy=learns, values=critic)
    loss = scores.logprobs.mean()
    if scores.values is not None:
        loss = loss + scores.values.mean()
    if scores.entropy is not None and settings.entropy_coef > 0:
        loss = loss + scores.entropy.mean()
    loss.backward()


def _rows(policy: CausalPolicy, rows: int, actions: int) -> Batch:
    """Rows of random tokens, each a prompt of its own, whose last tokens are actions."""
    length = min(_ROW, policy.context_length or _ROW)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return Batch(
        tokens=tokens.flatten(),
        row_lengths=torch.full((rows,), length),
        actions=tokens[:, -actions:].flatten(),
        positions=torch.arange(length - actions - 1, length - 1).repeat(rows),
        num_actions=torch.full((rows,), actions),
        engine_logprobs=torch.zeros(rows * actions),
        terminated=torch.ones(rows, dtype=torch.bool),
        group=torch.arange(rows),
        version=torch.zeros(rows, dtype=torch.int64),
    ).to(policy.device)


def runtime_bytes(recipe: Recipe) -> int:
    """What this process holds before the recipe's model: the libraries, each used once on a tiny model."""
    tiny = ModelSettings(name=TINY_NAMES[0], dtype=recipe.model.dtype, device=recipe.model.device)
    policy = policy_of(recipe.model_copy(update={"model": tiny}))
    assert isinstance(policy, CausalPolicy)
    engine = LocalEngine(**recipe.engine.model_dump())
    engine.load(policy, version=0)
    prompt = policy.encode(Prompt(id=0, content="1 + 1"))
    engine.sample([prompt], group_size=2, sampling=dataclasses.replace(sampling_of(recipe), max_new_tokens=2), seed=0)
    _backward(recipe, policy, _rows(policy, 2, 8))
    apply_gradients(policy.module, make_optimizer(policy.module, recipe.optimizer), max_norm=1.0)
    return resident_bytes()


def least_bytes(recipe: Recipe) -> int:
    """Bytes of the model's weights alone, by its config. Raises: ModelError as loading it would."""
    half = recipe.model.dtype == "bfloat16" and recipe.model.lora is not None
    return count_weights(recipe.model.name) * (2 if half else 4)


def examine_memory(findings: Findings, found: Forecast) -> None:
    """Whether the forecast fits what there is, and what it is made of."""
    free = available_bytes()
    shown = {name.replace("_", " "): size / GIB for name, size in found.parts.items()}
    parts = ", ".join(f"{name} {size:.2f}" for name, size in shown.items() if size >= _SHOWN)
    text = f"{found.total / GIB:.2f} GiB at the peak, of {free / GIB:.1f} free: {parts}"
    values: dict[str, Any] = {"bytes": found.total, "available_bytes": free, "parts": found.parts}
    if found.total > free:
        findings.add("forecast", "error", text, _less(found), **values)
    elif found.total > _NEARLY * free:
        findings.add("forecast", "warning", text, _less(found), **values)
    else:
        findings.add("forecast", "ok", text, **values)


def _less(found: Forecast) -> str:
    """What to change, by the largest part that can be made smaller."""
    mends = {
        "activations": "lower training.micro_batch_tokens, or set model.gradient_checkpointing = true",
        "optimiser": "train adapters only: a [model.lora] section",
        "reference": "train adapters only ([model.lora]), which needs no second model, or set algorithm.kl = 'off'",
        "critic": "set model.critic = 'head'",
        "cache": "lower engine.max_rows or engine.cache_gib",
        "engine_weights": "set engine.kernels = 'torch', which multiplies by the model's own weights, more slowly",
    }
    return mends[max(mends, key=lambda name: found.parts.get(name, 0))]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
