"""What each loss does on average, found exactly: every sequence, or every batch of a bandit, with its probability."""

from __future__ import annotations

import itertools
import math
import statistics
import time

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from upslope.estimators import (
    batch_mean,
    entropy,
    gae,
    group_mean,
    kl_estimate,
    kl_rewards,
    leave_one_out,
    n_step_returns,
    row_ids,
    scale_by_group_std,
    whiten,
)
from upslope.evaluation.oracle import (
    action_rewards,
    enumerate_sequences,
    language_model_logits,
    num_prefixes,
    policy_gradient,
    score_rewards,
    solve,
    tabular_logits,
)
from upslope.losses import (
    aggregation,
    cispo,
    clipped_surrogate,
    reinforce,
    row_truncated_importance_weights,
    sequence_surrogate,
    truncated_importance_weights,
    weighted_sum,
)

TOLERANCE = {"rtol": 0, "atol": 1e-12}
PPO_CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}


def grad(loss, parameter):
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


@pytest.fixture
def tree():
    """A policy over 3 symbols, one of which ends the row, and 3 actions at most; the table of its logits."""
    table = torch.randn(
        num_prefixes(3, horizon=3), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    return enumerate_sequences(tabular_logits(table), horizon=3, end=2), table


@pytest.mark.parametrize("baseline", [0.0, 3.7])
def test_every_surrogate_gradient_on_policy_is_the_policy_gradient(tree, baseline):
    """CHECKS 24, 35: over every sequence with its probability, -grad(loss) is grad J, whatever the baseline."""
    tree, table = tree
    exact = solve(
        tree, action_rewards(tree, lambda prefix, action: float((action + 2) * (len(prefix) + 1) % 4)), gamma=1
    )
    logprobs, old_logprobs = tree.pack(tree.logprobs), tree.pack(tree.logprobs).detach()
    advantages = tree.pack(exact.action_values).detach() - baseline
    scale = {"weights": tree.weights, "denominator": 1.0}
    losses = {
        "reinforce": reinforce(logprobs, advantages, **scale),
        "clip": clipped_surrogate(logprobs, old_logprobs, advantages, **PPO_CLIP, **scale),
        "cispo": cispo(logprobs, old_logprobs, advantages, clip_low=None, clip_high=0.2, **scale),
    }
    (expected,) = policy_gradient(exact, [table])
    for loss in losses.values():
        assert_close(-grad(loss, table), expected, **TOLERANCE)


GPT2 = GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=9)
LLAMA = LlamaConfig(
    vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=9
)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_surrogate_gradient_is_the_policy_gradient_of_a_language_model(config):
    """CHECKS 24: in every parameter of a tiny language model restricted to three tokens, whatever the baseline."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    tree = enumerate_sequences(language_model_logits(model, (3, 1), (5, 7, 9)), horizon=3, end=2)
    exact = solve(tree, score_rewards(tree, lambda sequence: float(sequence.count(1))), gamma=1.0)
    advantages = tree.pack(exact.action_values).detach() - 0.3
    logprobs = tree.pack(tree.logprobs)
    scale = {"weights": tree.weights, "denominator": 1.0}
    loss = clipped_surrogate(logprobs, logprobs.detach(), advantages, **PPO_CLIP, **scale)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(-loss, parameters, retain_graph=True, materialize_grads=True)
    expected = policy_gradient(exact, parameters)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, **TOLERANCE)
    assert sum(b.norm() for b in expected) > 1e-3


def row_score(tree):
    """A score of sequences, its exact policy gradient, and the score at each action of its row."""

    def score(sequence):
        return float(sum(3**t * symbol for t, symbol in enumerate(sequence)) % 5)

    solution = solve(tree, score_rewards(tree, score), gamma=1.0)
    scores = torch.tensor([score(sequence) for sequence in tree.sequences], dtype=torch.float64)
    return solution, scores[row_ids(tree.num_actions)]


def test_the_sequence_ratio_is_the_policy_gradient_and_its_root_is_not(tree):
    """CHECKS 24: RLOO's whole-row ratio with a row return is unbiased; GSPO's divides each row's gradient by n."""
    tree, table = tree
    solution, scores = row_score(tree)
    logprobs, old_logprobs = tree.pack(tree.logprobs), tree.pack(tree.logprobs).detach()
    weights, _ = aggregation(tree.num_actions, over="rows_token_mean", dtype=torch.float64)
    settings = {"clip_low": None, "clip_high": None, "token_level": False}

    def loss(length_normalised):
        return sequence_surrogate(
            logprobs,
            old_logprobs,
            scores - 1.0,
            tree.num_actions,
            length_normalised=length_normalised,
            weights=weights * tree.weights,
            denominator=1.0,
            **settings,
        )

    (expected,) = policy_gradient(solution, [table])
    assert_close(-grad(loss(False), table), expected, **TOLERANCE)
    per_row = tree.weights / tree.num_actions[row_ids(tree.num_actions)]
    divided = grad((per_row * (scores - 1.0) * logprobs).sum(), table)
    assert_close(-grad(loss(True), table), divided, **TOLERANCE)
    assert (divided - expected).norm() > 0.05 * expected.norm()


def test_importance_weights_undo_an_engine_that_samples_from_another_policy(tree):
    """CHECKS 22: uncapped row weights give the exact policy gradient from another policy's samples; per-action ones
    give one whose prefixes still come from the engine; a cap binds and biases."""
    tree, table = tree
    solution, scores = row_score(tree)
    engine_table = table.detach() + 0.5 * torch.randn(table.shape, generator=torch.Generator().manual_seed(5)).double()
    engine = enumerate_sequences(tabular_logits(engine_table), horizon=3, end=2)
    logprobs, engine_logprobs = tree.pack(tree.logprobs), engine.pack(engine.logprobs)

    def gradient(correction):
        return -grad(reinforce(logprobs, scores, weights=engine.weights * correction, denominator=1.0), table)

    (expected,) = policy_gradient(solution, [table])
    error = {
        "none": gradient(1.0),
        "row": gradient(row_truncated_importance_weights(logprobs, engine_logprobs, tree.num_actions, cap=1e9)),
        "action": gradient(truncated_importance_weights(logprobs, engine_logprobs, cap=1e9)),
        "capped": gradient(row_truncated_importance_weights(logprobs, engine_logprobs, tree.num_actions, cap=1.1)),
    }
    error = {name: ((actual - expected).norm() / expected.norm()).item() for name, actual in error.items()}
    assert error["row"] < 1e-12
    assert error["capped"] > 0.01
    assert 0.01 < error["action"] < error["none"]


def test_an_entropy_bonus_raises_entropy():
    """CHECKS 34: 50 bandit steps end at higher entropy for each larger bonus, above the start without reward."""
    rewards = torch.tensor([1.0, 0.0, 0.2, 0.5, -0.3], dtype=torch.float64)

    def final_entropy(coef, rewards):
        logits = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
        for _ in range(50):
            logprobs = logits.log_softmax(0)
            loss = reinforce(logprobs, rewards, weights=logprobs.exp().detach(), denominator=1.0)
            bonus = weighted_sum(entropy(logits[None]), weights=torch.ones(1), denominator=1.0)
            logits = (logits - grad(loss - coef * bonus, logits)).detach().requires_grad_()
        return entropy(logits.detach()[None]).item()

    reached = [final_entropy(coef, rewards) for coef in (0.0, 0.1, 0.3, 1.0)]
    assert reached == sorted(reached)
    assert reached[-1] > reached[0] + 0.5
    start = entropy(torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])).item()
    assert final_entropy(0.1, torch.zeros(5, dtype=torch.float64)) > start + 0.1


# The presets on a bandit: one-action rows in two interleaved groups of two, the first step after sampling.

REWARDS = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)
REF_LOGPROBS = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
GROUP = torch.tensor([7, -1, 7, -1])
KL_COEF, CRITIC, RUNNING = 0.1, 0.8, 0.6
PRESETS = ("reinforce", "reinforce_pp", "rloo", "a2c", "ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo")


def preset_loss(name, logits, arms, rewards, ref_logprobs, group):
    """The preset's row of the design's table, composed from estimators and losses."""
    num_actions, logprobs = torch.ones_like(arms), logits.log_softmax(0)[arms]
    old_logprobs, scores, ended = logprobs.detach(), rewards[arms], torch.zeros_like(arms, dtype=logits.dtype)
    kl = kl_estimate(old_logprobs, ref_logprobs[arms], estimator="k1")
    if name in ("reinforce_pp", "rloo", "ppo"):
        scores = kl_rewards(scores, kl, coef=KL_COEF)
    critic = torch.full_like(scores, CRITIC)
    if name == "reinforce":
        advantages = scores - RUNNING
    elif name == "reinforce_pp":
        advantages = whiten(scores - batch_mean(scores))
    elif name == "rloo":
        advantages = scores - leave_one_out(scores, group)
    elif name == "a2c":
        advantages = n_step_returns(scores, critic, num_actions, ended, gamma=1.0, n=5) - critic
    elif name == "ppo":
        advantages = whiten(gae(scores, critic, num_actions, ended, gamma=1.0, lam=0.95))
    else:
        advantages = scores - group_mean(scores, group)
        if name != "dr_grpo":
            advantages = scale_by_group_std(advantages, scores, group, eps=1e-4)
    over = {"grpo": "rows_token_mean", "gspo": "rows_token_mean", "rloo": "rows_token_mean", "reinforce": "rows"}
    over |= {"dr_grpo": "constant"}
    weights, denominator = aggregation(
        num_actions, over=over.get(name, "tokens"), constant_length=1, dtype=torch.float64
    )
    scale = {"weights": weights, "denominator": denominator}
    if name in ("reinforce", "a2c"):
        return reinforce(logprobs, advantages, **scale)
    if name in ("rloo", "gspo"):
        bound = None if name == "rloo" else 3e-4
        kind = {"clip_low": bound, "clip_high": bound, "length_normalised": name == "gspo", "token_level": False}
        return sequence_surrogate(logprobs, old_logprobs, advantages, num_actions, **kind, **scale)
    if name == "cispo":
        return cispo(logprobs, old_logprobs, advantages, clip_low=None, clip_high=0.28, **scale)
    high = 0.28 if name == "dapo" else 0.2
    loss = clipped_surrogate(logprobs, old_logprobs, advantages, clip_low=0.2, clip_high=high, dual_clip=None, **scale)
    if name == "grpo":
        loss = loss + KL_COEF * weighted_sum(kl_estimate(logprobs, ref_logprobs[arms], estimator="k3"), **scale)
    return loss


def plain_gradient(name, p, arms):
    """-grad of the preset's loss at one batch: the mean of advantage (onehot - p), in plain Python and `statistics`."""
    scores = [REWARDS[a].item() for a in arms]
    ratios = [p[a].item() / math.exp(REF_LOGPROBS[a]) for a in arms]
    if name in ("reinforce_pp", "rloo", "ppo"):
        scores = [s - KL_COEF * math.log(ratio) for s, ratio in zip(scores, ratios, strict=True)]
    out = torch.zeros(3, dtype=torch.float64)
    for row, arm in enumerate(arms):
        partners = [s for s, g in zip(scores, GROUP.tolist(), strict=True) if g == GROUP[row]]
        if name == "reinforce":
            advantage = scores[row] - RUNNING
        elif name == "a2c":
            advantage = scores[row] - CRITIC
        elif name in ("reinforce_pp", "ppo"):
            spread = statistics.stdev(scores) if max(scores) > min(scores) else 1.0
            advantage = (scores[row] - statistics.fmean(scores)) / spread
        elif name == "rloo":
            advantage = scores[row] - (sum(partners) - scores[row])
        else:
            advantage = scores[row] - statistics.fmean(partners)
            if name != "dr_grpo":
                advantage /= statistics.stdev(partners) + 1e-4
        if name == "grpo":  # k3 = 1/x - 1 + log x for x = p/q: its derivative in log p is 1 - 1/x
            advantage -= KL_COEF * (1 - 1 / ratios[row])
        out += advantage * (torch.eye(3, dtype=torch.float64)[arm] - p) / len(arms)
    return out


def expected_gradient(name, gradient, p):
    batches = itertools.product(range(3), repeat=4)
    return sum(p[list(arms)].prod() * gradient(name, arms) for arms in batches)


LOGITS = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)


def composed_gradient(name, arms):
    logits = LOGITS.clone().requires_grad_()
    return -grad(preset_loss(name, logits, torch.tensor(arms), REWARDS, REF_LOGPROBS, GROUP), logits)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_expected_gradient(name):
    """CHECKS 35, at the level of losses: over all 81 batches, equal to an independent sum; for a constant baseline and
    leave-one-out that is the policy gradient itself, for a mean over two rows half of it."""
    p = LOGITS.softmax(0)
    actual = expected_gradient(name, composed_gradient, p)
    assert_close(actual, expected_gradient(name, lambda n, arms: plain_gradient(n, p, arms), p), **TOLERANCE)
    paid = REWARDS - (KL_COEF * (p.log() - REF_LOGPROBS) if name == "rloo" else 0.0)
    policy = p * (paid - (p * paid).sum())
    if name in ("reinforce", "a2c", "rloo"):
        assert_close(actual, policy, **TOLERANCE)
    if name == "dr_grpo":
        assert_close(actual, policy / 2, **TOLERANCE)


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_mean_gradient_is_within_five_standard_errors(name):
    """CHECKS 35, at the level of losses: 300 sampled batches."""
    p = LOGITS.softmax(0)
    generator = torch.Generator().manual_seed(1)
    batches = torch.multinomial(p, 300 * 4, replacement=True, generator=generator).view(300, 4).tolist()
    samples = torch.stack([composed_gradient(name, tuple(arms)) for arms in batches])
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected_gradient(name, composed_gradient, p)).abs() <= 5 * error).all()


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_losses_solve_a_five_armed_bandit(name):
    """CHECKS 35, at the level of losses: to 0.95 of the best arm, in under five seconds."""
    start, generator = time.perf_counter(), torch.Generator().manual_seed(0)
    rewards = torch.tensor([0.1, 0.9, 0.3, 0.5, 0.0], dtype=torch.float64)
    reference = torch.full((5,), 0.2, dtype=torch.float64).log()
    logits, group = torch.zeros(5, dtype=torch.float64, requires_grad=True), torch.arange(32) % 4
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        arms = torch.multinomial(logits.detach().softmax(0), 32, replacement=True, generator=generator)
        optimizer.zero_grad()
        preset_loss(name, logits, arms, 3 * rewards, reference, group).backward()
        optimizer.step()
        if logits.detach().softmax(0)[1] >= 0.97:
            break
    assert logits.detach().softmax(0)[1] >= 0.95
    assert time.perf_counter() - start < 5
