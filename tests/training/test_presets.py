"""Every preset on a five-armed bandit: it solves it, and its gradient is the one its settings promise."""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack

import pytest
import torch
from bandit import ARMS, bandit_session

from upslope.presets import PRESETS
from upslope.training import policy_gradient
from upslope.training.gather import gather

GROUPED = ("rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo")


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def overrides(preset):
    """Sizes for a bandit; nothing that makes a preset what it is."""
    small = {"overlong": "end", "kl_coef": 0.001} if PRESETS[preset].get("kl") else {"overlong": "end"}
    return {"preset": preset, **({"group_size": 8} if preset in GROUPED else {}), **small}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_solves_the_bandit(preset, tmp_path, stack):
    """CHECKS 35: five arms, the best one is pulled with probability 0.95 or more after 120 steps."""
    settings = {f"algorithm.{name}": value for name, value in overrides(preset).items()}
    session = bandit_session(tmp_path / "run", {**settings, "training.steps": 120}, stack=stack)
    policy_gradient.train(session)
    best = session.policy.module.logits.detach().softmax(1)[0, max(range(len(ARMS)), key=ARMS.__getitem__)]
    assert best >= 0.95


def advantages_of(preset, scores):
    """What the preset's table row says of one group (or batch) of scores, written anew in plain Python."""
    n = len(scores)
    mean = sum(scores) / n
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (n - 1))
    if preset in ("reinforce", "a2c"):  # a running mean and a critic that start at 0
        return list(scores)
    if preset == "rloo":
        return [s - (sum(scores) - s) / (n - 1) for s in scores]
    if preset == "dr_grpo":
        return [s - mean for s in scores]
    eps = 0.0 if preset in ("ppo", "reinforce_pp") else 1e-6
    return [0.0 if std == 0 else (s - mean) / (std + eps) for s in scores]


def expected_gradient(preset, probabilities, rewards, n, scale):
    """Of the loss, over every batch of n pulls with its probability; scale is 1 over the preset's denominator."""
    arms = len(rewards)
    total = torch.zeros(arms, dtype=torch.float64)
    mass = 0.0
    for pulls in itertools.product(range(arms), repeat=n):
        scores = [rewards[arm] for arm in pulls]
        probability = math.prod(probabilities[arm] for arm in pulls)
        if preset == "dapo" and len(set(scores)) == 1:
            continue  # dynamic sampling drops the group, so the rest share its probability
        mass += probability
        for arm, advantage in zip(pulls, advantages_of(preset, scores), strict=True):
            score = -torch.tensor(probabilities, dtype=torch.float64)
            score[arm] += 1.0
            total += probability * advantage * score * scale
    return -total / mass


@pytest.mark.parametrize("preset", PRESETS)
def test_mean_gradient_is_the_presets_own(preset, tmp_path, stack):
    """CHECKS 35: within 5 standard errors of the expected gradient found by enumerating every batch of four pulls.

    For leave-one-out and no baseline that is the policy gradient; a mean over four is 3/4 of it, and dividing by the
    standard deviation changes it more.
    """
    n, rewards = 4, (0.2, 1.0, 0.5)
    grouped = preset in GROUPED
    sizes = {"training.prompts_per_step": 1 if grouped else n, "group_size": n if grouped else 1, "epochs": 1}
    quiet = {"kl": "off", "kl_coef": 0.0, "kl_target": "none", "overlong": "end", "max_resamples": 20}
    session = bandit_session(
        tmp_path / "run",
        {"algorithm.preset": preset, **sizes, **quiet},
        reward=lambda completion: rewards[int(completion)],
        arms=3,
        stack=stack,
    )
    logits = session.policy.module.logits
    with torch.no_grad():
        logits.copy_(torch.tensor([[0.5, -0.5, 0.0]]))
    gradients = torch.stack([one_gradient(session, step) for step in range(400)]).double()
    probabilities = logits.detach().double().softmax(1)[0].tolist()
    scale = 1.0 / n / (4 if preset == "dr_grpo" else 1)  # dr_grpo divides by the constant length, max_new_tokens
    expected = expected_gradient(preset, probabilities, rewards, n, scale)
    error = gradients.std(0) / math.sqrt(len(gradients))
    assert ((gradients.mean(0) - expected).abs() <= 5 * error).all()
    assert expected.norm() > 20 * error.norm() / math.sqrt(3)


def one_gradient(session, step):
    """The gradient that one step of the real loop would apply to the logits; nothing is changed."""
    captured = []
    session.optimizer.step = lambda: captured.append(session.policy.module.logits.grad[0].clone())
    experience = gather(session, step=step)
    policy_gradient.learn(session, experience, session.state)
    return captured[0]
