"""KL estimators, their gradients in the loss and in the reward by enumeration, controllers and entropy."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import RecordError
from upslope.estimators import AdaptiveKL, FixedKL, entropy, exact_kl, kl_estimate, kl_rewards, row_sum
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, policy_gradient, solve, tabular_logits
from upslope.losses import reinforce, weighted_sum

TOLERANCE = {"rtol": 0, "atol": 1e-9}
ESTIMATORS = ("k1", "k2", "k3")


def distributions(seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    logits, ref_logits = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), ref_logits


def grad(value, parameter):
    return torch.autograd.grad(value, parameter)[0]


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def test_estimates_are_their_formulas():
    """CHECKS 24."""
    logprobs = torch.tensor([-0.3, -2.0, -1.0], dtype=torch.float64)
    ref_logprobs = torch.tensor([-1.3, -0.5, -1.0], dtype=torch.float64)
    log_ratios = [1.0, -1.5, 0.0]
    formulas = {
        "k1": lambda r: r,
        "k2": lambda r: r * r / 2,
        "k3": lambda r: math.exp(-r) - 1 + r,
    }
    for name, formula in formulas.items():
        expected = torch.tensor([formula(r) for r in log_ratios], dtype=torch.float64)
        assert_close(kl_estimate(logprobs, ref_logprobs, estimator=name), expected, **TOLERANCE)
    with pytest.raises(RecordError, match=r"'k4'.*k1, k2 or k3"):
        kl_estimate(logprobs, ref_logprobs, estimator="k4")


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    """CHECKS 26, the value: expectations over every action."""
    logits, ref_logits = distributions()
    logprobs, ref_logprobs = logits.log_softmax(0).detach(), ref_logits.log_softmax(0)
    exact = sum(p.exp() * (p - q) for p, q in zip(logprobs, ref_logprobs, strict=True))
    mean = {k: (logprobs.exp() * kl_estimate(logprobs, ref_logprobs, estimator=k)).sum() for k in ESTIMATORS}
    assert_close(mean["k1"], exact, **TOLERANCE)
    assert_close(mean["k3"], exact, **TOLERANCE)
    assert abs(mean["k2"] - exact) > 0.01
    assert (kl_estimate(logprobs, ref_logprobs, estimator="k3") >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_gradient_of_each_estimator_in_the_loss(seed):
    """CHECKS 26: expected-gradient error against grad KL(policy, reference): k1 1.00, k2 0, k3 far from 0.

    k1 gives no gradient at all, k2 the exact one, k3 that of KL(reference, policy).
    """
    logits, ref_logits = distributions(seed)
    logprobs, ref_logprobs = logits.log_softmax(0), ref_logits.log_softmax(0)
    exact = grad((logprobs.exp() * (logprobs - ref_logprobs)).sum(), logits)
    backwards = grad((ref_logprobs.exp() * (ref_logprobs - logits.log_softmax(0))).sum(), logits)
    weights = logits.softmax(0).detach()
    gradient = {}
    for k in ESTIMATORS:
        term = kl_estimate(logits.log_softmax(0), ref_logprobs, estimator=k)
        gradient[k] = grad(weighted_sum(term, weights=weights, denominator=1.0), logits)
    assert relative_error(gradient["k1"], exact) == pytest.approx(1.0, abs=1e-12)
    assert relative_error(gradient["k2"], exact) < 1e-12
    assert relative_error(gradient["k3"], exact) > 0.05
    assert_close(gradient["k3"], backwards, **TOLERANCE)
    assert gradient["k1"].abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_each_estimator_in_the_reward(seed):
    """CHECKS 26: charged as a reward, k1 gives grad KL exactly, k3 the difference of both directions, k2 neither."""
    logits, ref_logits = distributions(seed)
    ref_logprobs = ref_logits.log_softmax(0)
    exact = grad((logits.softmax(0) * (logits.log_softmax(0) - ref_logprobs)).sum(), logits)
    backwards = grad((ref_logprobs.exp() * (ref_logprobs - logits.log_softmax(0))).sum(), logits)
    gradient = {}
    for k in ESTIMATORS:
        logprobs = logits.log_softmax(0)
        rewards = kl_rewards(
            torch.zeros(6, dtype=torch.float64), kl_estimate(logprobs, ref_logprobs, estimator=k), coef=1.0
        )
        gradient[k] = grad(reinforce(logprobs, rewards, weights=logprobs.exp().detach(), denominator=1.0), logits)
    assert relative_error(gradient["k1"], exact) < 1e-12
    assert_close(gradient["k3"], exact - backwards, **TOLERANCE)
    assert relative_error(gradient["k2"], exact) > 0.05


def test_k1_in_the_reward_is_the_gradient_of_the_whole_rows_kl_and_k2_in_the_loss_is_not():
    """CHECKS 26 over several actions: the loss leaves out that actions change which states come next."""
    generator = torch.Generator().manual_seed(0)
    table, ref = torch.randn(2, num_prefixes(3, horizon=3), 3, generator=generator, dtype=torch.float64)
    table.requires_grad_()
    tree = enumerate_sequences(tabular_logits(table), horizon=3, end=2)
    ref_tree = enumerate_sequences(tabular_logits(ref), horizon=3, end=2)
    logprobs, ref_logprobs = tree.pack(tree.logprobs), tree.pack(ref_tree.logprobs)
    exact = grad((tree.probabilities * row_sum(logprobs - ref_logprobs, tree.num_actions)).sum(), table)

    tree = enumerate_sequences(tabular_logits(table), horizon=3, end=2)
    cost = kl_estimate(tree.logprobs, ref_tree.logprobs, estimator="k1")
    charged = solve(tree, kl_rewards(torch.zeros_like(cost), cost, coef=1.0), gamma=1.0)
    assert_close(-policy_gradient(charged, [table])[0], exact, **TOLERANCE)

    term = kl_estimate(tree.pack(tree.logprobs), ref_logprobs, estimator="k2")
    in_loss = grad(weighted_sum(term, weights=tree.weights, denominator=1.0), table)
    assert relative_error(in_loss, exact) > 0.05


def test_rewards_and_kl_add_up_to_the_score():
    """CHECKS 14: sum(rewards) + coef sum(KL) = score of each row, and no gradient flows through the charge."""
    num_actions, scores, coef = torch.tensor([3, 1, 2]), torch.tensor([1.5, -2.0, 0.25], dtype=torch.float64), 0.1
    rewards = torch.zeros(6, dtype=torch.float64)
    rewards[num_actions.cumsum(0) - 1] = scores
    logprobs = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    kl = kl_estimate(logprobs, torch.zeros(6, dtype=torch.float64), estimator="k1")
    charged = kl_rewards(rewards, kl, coef=coef)
    assert_close(row_sum(charged, num_actions) + coef * row_sum(kl, num_actions), scores, **TOLERANCE)
    assert not charged.requires_grad


def test_exact_kl_and_entropy_are_their_sums_and_bans_count_nothing():
    """CHECKS 24, 34: against loops; banned choices give neither NaN nor gradient."""
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ref_logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits[1, 2] = ref_logits[1, 2] = ref_logits[3, 0] = logits[2, 4] = -math.inf
    logits.requires_grad_()
    kls, entropies = [], []
    for row, ref_row in zip(logits.tolist(), ref_logits.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
        q = [math.exp(x) / sum(map(math.exp, ref_row)) for x in ref_row]
        kls.append(sum(math.inf if b == 0 else a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
        entropies.append(-sum(a * math.log(a) for a in p if a > 0))
    divergence = exact_kl(logits, ref_logits)
    assert divergence[3] == math.inf
    assert_close(divergence, torch.tensor(kls, dtype=torch.float64), **TOLERANCE)
    assert_close(entropy(logits), torch.tensor(entropies, dtype=torch.float64), **TOLERANCE)
    gradient = grad(exact_kl(logits[:3], ref_logits[:3]).sum() + entropy(logits).sum(), logits)
    assert gradient.isfinite().all()
    free = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: exact_kl(x, ref_logits[:2, :4].clamp(min=-3)) + entropy(x), (free,))


def test_the_adaptive_coefficient_is_the_published_rule_and_survives_json():
    """Ziegler et al. 2019, section 2.2: proportional, clipped at 20%."""
    start = AdaptiveKL(coef=0.2, target=6.0, horizon=100.0)
    assert start.update(6.6, 50).coef == pytest.approx(0.2 * (1 + 0.1 * 0.5))
    assert start.update(60.0, 50).coef == pytest.approx(0.2 * (1 + 0.2 * 0.5))
    assert start.update(0.0, 50).coef == pytest.approx(0.2 * (1 - 0.2 * 0.5))
    assert start.update(6.0, 50).coef == 0.2
    moved = start.update(6.1, 7)
    assert AdaptiveKL(**json.loads(json.dumps(dataclasses.asdict(moved)))) == moved
    assert FixedKL(0.2).update(60.0, 50) == FixedKL(0.2)
    with pytest.raises(RecordError, match="measured KL is nan"):
        start.update(math.nan, 8)


def run_bandit(coef, *, where, steps=50):
    """Exact-gradient ascent on a 5-armed bandit; the KL from the uniform start after some steps."""
    rewards = torch.tensor([1.0, 0.0, 0.2, 0.5, -0.3], dtype=torch.float64)
    reference = torch.full((5,), -math.log(5), dtype=torch.float64)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        logprobs = logits.log_softmax(0)
        weights = {"weights": logprobs.exp().detach(), "denominator": 1.0}
        if where == "reward":
            charged = kl_rewards(rewards, kl_estimate(logprobs, reference, estimator="k1"), coef=coef)
            loss = reinforce(logprobs, charged, **weights)
        else:
            penalty = weighted_sum(kl_estimate(logprobs, reference, estimator=where), **weights)
            loss = reinforce(logprobs, rewards, **weights) + coef * penalty
        with torch.no_grad():
            logits -= grad(loss, logits)
    return exact_kl(logits.detach(), reference).item()


@pytest.mark.parametrize("where", ["reward", "k2", "k3"])
def test_a_larger_coefficient_gives_a_smaller_kl(where):
    """CHECKS 27: after 50 bandit steps, in the reward (k1) and in the loss (k2, k3)."""
    reached = [run_bandit(coef, where=where) for coef in (0.0, 0.1, 0.3, 1.0)]
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] < 0.5 * reached[0]


def test_k1_in_the_loss_restrains_nothing():
    """CHECKS 26, 27: the mistake k1 in the loss is, seen on the bandit."""
    assert run_bandit(1.0, where="k1") == pytest.approx(run_bandit(0.0, where="k1"), abs=1e-9)
