"""Log-probabilities of actions by a linear output head, in chunks: never all logits [tokens, vocabulary] at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from upslope.kernels import gemm
from upslope.policies.sampling import Sampling, warp

_CHUNK_BYTES = 64 << 20  # float32 logits of one chunk


def head_scores(
    head: nn.Linear, hidden: Tensor, actions: Tensor, *, sampling: Sampling, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """action_scores of the logits head(hidden), for hidden [M, H] where actions [M] are decided; differentiable.

    The backward pass computes the logits again. Memory beyond inputs and gradients is a few chunks.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    count, fill = len(actions), -len(actions) % gemm.ROWS if gemm.backend() != "torch" else 0
    hidden, actions = F.pad(hidden, (0, 0, 0, fill)), F.pad(actions, (0, fill))
    weight = head.weight.to(hidden.dtype)
    bias = None if head.bias is None else head.bias.to(hidden.dtype)
    if sampling.top_k is None and sampling.top_p is None:
        temperature = 1.0 if sampling.greedy else sampling.temperature
        arguments = hidden, weight, bias, actions, temperature, entropy
        with torch.autocast(hidden.device.type, enabled=False):
            logprobs, entropies = _HeadScores.apply(*arguments)  # type: ignore[no-untyped-call]
        return logprobs[:count], entropies[:count] if entropy else None
    cut = partial(_cut_scores, sampling, entropy)
    parts = [
        checkpoint(cut, hidden[rows], weight, bias, actions[rows], use_reentrant=False)
        for rows in _chunks(hidden, weight)
    ]
    logprobs = torch.cat([part[0] for part in parts])[:count]
    return logprobs, torch.cat([part[1] for part in parts])[:count] if entropy else None


def action_scores(
    logits: Tensor, actions: Tensor, *, sampling: Sampling, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log p [M] of actions [M] under warped logits [M, V], and on request the entropy [M] over the support, in nats."""
    logits = warp(logits, sampling, actions=actions)
    normaliser = logits.logsumexp(1)
    logprobs = logits.gather(1, actions[:, None])[:, 0] - normaliser
    if not entropy:
        return logprobs, None
    probabilities = (logits - normaliser[:, None]).exp()
    return logprobs, normaliser - (probabilities * logits.masked_fill(probabilities == 0, 0.0)).sum(1)


def _cut_scores(
    sampling: Sampling, entropy: bool, hidden: Tensor, weight: Tensor, bias: Tensor | None, actions: Tensor
) -> tuple[Tensor, Tensor | None]:
    return action_scores(gemm.linear(hidden, weight, bias), actions, sampling=sampling, entropy=entropy)


class _HeadScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, actions, temperature, entropy):  # type: ignore[no-untyped-def]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, normaliser, entropies = (hidden.new_empty(len(actions), dtype=wide) for _ in range(3))
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, bias, temperature)
            top = logits.amax(1)
            logits.sub_(top[:, None])
            chosen = logits.gather(1, actions[rows, None])[:, 0]
            weights = logits.exp() if entropy else logits.exp_()
            total = weights.sum(1)
            log_total = total.log()
            logprobs[rows], normaliser[rows] = chosen - log_total, top + log_total
            if entropy:
                entropies[rows] = log_total - torch.linalg.vecdot(weights, logits) / total
        ctx.save_for_backward(hidden, weight, bias, actions, normaliser, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies if entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropies):  # type: ignore[no-untyped-def]
        hidden, weight, bias, actions, normaliser, entropies = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_logprobs = torch.zeros_like(normaliser) if grad_logprobs is None else grad_logprobs
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if for_bias else None
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, bias, ctx.temperature).sub_(normaliser[rows, None])
            grad = _softmax_gradient(
                logits,
                actions[rows],
                grad_logprobs[rows],
                entropies[rows],
                None if grad_entropies is None else grad_entropies[rows],
            )
            grad = grad.div_(ctx.temperature).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = gemm.product(grad, weight.T)
            if grad_weight is not None:
                grad_weight += gemm.product(grad.T, hidden[rows].T)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _softmax_gradient(
    logprobs: Tensor, actions: Tensor, for_action: Tensor, entropy: Tensor, for_entropy: Tensor | None
) -> Tensor:
    """Gradient [m, V] to the logits, from those to log p of the actions [m] and to the entropy [m]; reuses logprobs.

    d log p[a] = 1[a] - p and d entropy = -p (log p + entropy).
    """
    if for_entropy is None:
        grad = logprobs.exp_().mul_(-for_action[:, None])
    else:
        probabilities = logprobs.exp()
        pull = logprobs.add_(entropy[:, None]).mul_(for_entropy[:, None]).add_(for_action[:, None])
        grad = pull.mul_(probabilities).neg_()
    grad[torch.arange(len(actions), device=actions.device), actions] += for_action
    return grad


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = gemm.product(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def chunk_rows(vocabulary: int) -> int:
    """How many actions' logits are held at a time."""
    return max(1, _CHUNK_BYTES // (4 * vocabulary) // gemm.ROWS) * gemm.ROWS


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    size = chunk_rows(weight.shape[0])
    for start in range(0, hidden.shape[0], size):
        yield slice(start, start + size)
