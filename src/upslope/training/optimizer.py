"""AdamW over a policy's trainable weights, grouped so that norms, biases and the critic get their own settings."""

from __future__ import annotations

import torch
from torch import nn

from upslope.settings import OptimizerSettings
from upslope.training.schedule import learning_rate_factor


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW in groups: weights; norms and biases, without decay; the value head and a discriminator, at their own
    learning rates."""
    weights: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    discriminator: list[nn.Parameter] = []
    for name, parameter in trainable(module).items():
        if name.startswith("value_head."):
            head.append(parameter)
        elif name.startswith("discriminator"):
            discriminator.append(parameter)
        else:
            (weights if parameter.dim() > 1 else plain).append(parameter)
    groups = [
        {"params": weights, "base_lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": plain, "base_lr": settings.lr, "weight_decay": 0.0},
        {"params": head, "base_lr": settings.critic_lr, "weight_decay": 0.0},
        {"params": discriminator, "base_lr": settings.discriminator_lr, "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def is_critic(name: str) -> bool:
    """Whether a parameter's name is the critic's: the value head, or a separate critic's trunk."""
    return name.startswith(("value_head.", "critic."))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, *, step: int, total_steps: int
) -> float:
    """Set every group's learning rate for this step (counted from 1); returns the policy's."""
    factor = learning_rate_factor(
        step,
        total_steps=total_steps,
        warmup_steps=settings.warmup_steps,
        schedule=settings.schedule,
        final_fraction=settings.final_lr_fraction,
    )
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return settings.lr * factor


def apply_gradients(module: nn.Module, optimizer: torch.optim.Optimizer, *, max_norm: float) -> float | None:
    """One optimiser step on the accumulated gradients, which are cleared; the policy's gradient norm before clipping.

    Policy and critic are clipped apart, so that an untrained critic's large gradient does not silence the policy's.
    Returns None, and changes nothing, when a gradient is not finite.
    """
    parameters = trainable(module)
    policy = [p for name, p in parameters.items() if not is_critic(name)]
    critic = [p for name, p in parameters.items() if is_critic(name)]
    norms = [torch.nn.utils.clip_grad_norm_(part, max_norm) for part in (policy, critic)]
    finite = all(bool(torch.isfinite(norm)) for norm in norms)
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norms[0]) if finite else None
