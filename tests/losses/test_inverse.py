"""Inverse reinforcement learning on problems whose every sequence is enumerated."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import RecordError
from upslope.estimators import row_sum
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, tabular_logits
from upslope.losses import (
    adversarial_reward,
    airl_logits,
    discriminator_loss,
    inverse_q,
    inverse_q_rewards,
    max_ent_logprobs,
    max_ent_loss,
    max_ent_weights,
)

TOLERANCE = {"rtol": 0, "atol": 1e-12}
NUM_ACTIONS = torch.tensor([3, 1, 4])
BOOTSTRAP = torch.tensor([0.0, 0.0, 0.7], dtype=torch.float64)  # the last row was cut


def draw():
    q, v, weights = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return q.requires_grad_(), v.requires_grad_(), weights.abs()


def minimise(parameters, loss, steps=400):
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def test_inverse_q_is_its_formula():
    """CHECKS 24: V - Q + c (Q - gamma V')^2, V' of the next action of the row, bootstrap after its last."""
    q, v, weights = draw()
    settings = {"gamma": 0.9, "coef": 0.3}
    loss = inverse_q(q, v, NUM_ACTIONS, BOOTSTRAP, **settings, weights=weights, denominator=5.0)
    following = [*v[1:3], 0.0, 0.0, *v[5:8], 0.7]
    rewards = [a - 0.9 * b for a, b in zip(q, following, strict=True)]
    expected = sum(w * (y - x + 0.3 * r**2) for w, x, y, r in zip(weights, q, v, rewards, strict=True)) / 5.0
    assert_close(loss, expected, **TOLERANCE)
    for mine, theirs in zip(torch.autograd.grad(loss, [q, v]), torch.autograd.grad(expected, [q, v]), strict=True):
        assert_close(mine, theirs, **TOLERANCE)


@pytest.fixture
def demonstrations():
    """The exact distribution of an expert over all sequences of 3 symbols, one of which ends a row, to length 4."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(num_prefixes(3, horizon=4), 3, generator=generator, dtype=torch.float64)
    return enumerate_sequences(tabular_logits(table), horizon=4, end=2)


def rows_of(tree, table):
    return row_sum(tree.pack(table), tree.num_actions)


def test_inverse_q_recovers_the_rows_reward_up_to_a_constant(demonstrations):
    """From an exact demonstration distribution p = exp(r) / Z, the rewards of a row add up to r + constant: spread
    <= 1e-6. The constant is V(start); without a price on rewards the minimum is the demonstrations' distribution."""
    truth = row_sum(demonstrations.pack(demonstrations.logprobs), demonstrations.num_actions)
    logits = torch.zeros_like(demonstrations.logprobs, requires_grad=True)
    bootstrap = torch.zeros(len(truth), dtype=torch.float64)

    def parts():
        return demonstrations.pack(logits), demonstrations.pack(logits.logsumexp(1)), demonstrations.num_actions

    minimise(
        [logits],
        lambda: inverse_q(*parts(), bootstrap, gamma=1.0, coef=0.0, weights=demonstrations.weights, denominator=1.0),
    )
    rewards = row_sum(inverse_q_rewards(*parts(), bootstrap, gamma=1.0), demonstrations.num_actions).detach()
    gap = rewards - truth
    assert float(gap.max() - gap.min()) <= 1e-6
    assert_close(gap.mean(), logits[0].logsumexp(0).detach(), rtol=0, atol=1e-6)


def test_a_price_on_rewards_makes_them_smaller(demonstrations):
    bootstrap = torch.zeros(len(demonstrations.num_actions), dtype=torch.float64)
    sizes = []
    for coef in (0.0, 0.1, 1.0):
        logits = torch.zeros_like(demonstrations.logprobs, requires_grad=True)

        def parts(logits=logits):
            return demonstrations.pack(logits), demonstrations.pack(logits.logsumexp(1)), demonstrations.num_actions

        scale = {"weights": demonstrations.weights, "denominator": 1.0}
        minimise(
            [logits],
            lambda parts=parts, coef=coef, scale=scale: inverse_q(*parts(), bootstrap, gamma=1.0, coef=coef, **scale),
            steps=100,
        )
        rewards = inverse_q_rewards(*parts(), bootstrap, gamma=1.0).detach()
        sizes.append((demonstrations.weights * rewards.square()).sum().item())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.8 * sizes[0]


def test_the_airl_discriminator_recovers_the_demonstrations_log_probability(demonstrations):
    """Trained against any policy on whole rows, r = log p(demonstration) up to nothing at all: spread <= 1e-6."""
    truth = row_sum(demonstrations.pack(demonstrations.logprobs), demonstrations.num_actions)
    uniform = enumerate_sequences(
        tabular_logits(torch.zeros(num_prefixes(3, horizon=4), 3, dtype=torch.float64)), horizon=4, end=2
    )
    own = row_sum(uniform.pack(uniform.logprobs), uniform.num_actions)
    assert uniform.sequences == demonstrations.sequences
    rewards = torch.zeros_like(truth, requires_grad=True)
    kinds = torch.arange(2 * len(truth)) < len(truth)
    weights = torch.cat((truth.exp(), own.exp()))

    def loss():
        logits = airl_logits(rewards, own).repeat(2)
        return discriminator_loss(logits, kinds, weights=weights, denominator=2.0)

    minimise([rewards], loss, steps=2000)
    gap = rewards.detach() - truth
    assert float(gap.max() - gap.min()) <= 1e-6


def test_a_discriminator_that_knows_nothing_pays_nothing_by_airl_and_log_two_by_gail():
    logits = torch.zeros(3, dtype=torch.float64)
    assert adversarial_reward(logits, form="airl").tolist() == [0.0] * 3
    assert adversarial_reward(logits, form="gail").tolist() == pytest.approx([math.log(2)] * 3)
    logits = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    for value, a, g in zip(
        logits, adversarial_reward(logits, form="airl"), adversarial_reward(logits, form="gail"), strict=True
    ):
        d = 1 / (1 + math.exp(-value))
        assert a.item() == pytest.approx(math.log(d) - math.log(1 - d))
        assert g.item() == pytest.approx(-math.log(1 - d))
    loss = discriminator_loss(logits, torch.tensor([True, False, True]), weights=torch.ones(3), denominator=3.0)
    d = torch.sigmoid(logits)
    assert_close(loss, -(d[0].log() + (1 - d[1]).log() + d[2].log()) / 3, **TOLERANCE)


def expected_length(bonus, *, steps):
    """Policy gradient with a constant reward an action, by exact gradients from the uniform policy; (before, after)."""
    table = torch.zeros(num_prefixes(3, horizon=5), 3, dtype=torch.float64, requires_grad=True)
    lengths = []
    for _ in range(steps + 1):
        tree = enumerate_sequences(tabular_logits(table), horizon=5, end=2)
        length = (tree.probabilities * tree.num_actions).sum()
        lengths.append(length.item())
        (gradient,) = torch.autograd.grad(bonus * length, table)
        table = (table + gradient).detach().requires_grad_()
    return lengths[0], lengths[-1]


def test_airl_with_a_constant_discriminator_keeps_the_length_and_gail_does_not():
    """D = 1/2 at every action: AIRL's reward is 0, the length drifts by 0 (<= 2%); GAIL's 0.69 an action farms it."""
    half = torch.zeros((), dtype=torch.float64)
    before, after = expected_length(adversarial_reward(half, form="airl"), steps=30)
    assert abs(after / before - 1) <= 0.02
    before, after = expected_length(adversarial_reward(half, form="gail"), steps=30)
    assert after / before > 1.2


def features_of(sequences):
    """How often each of four symbols stands in each of three places is not all there is: counts, and one of pairs."""
    rows = [[*(float(row.count(k)) for k in range(4)), float(row[0] == row[1])] for row in sequences]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def sixty_four():
    """64 sequences of three of four symbols, a linear reward over five features, and a prior."""
    uniform = torch.zeros(num_prefixes(4, horizon=3), 4, dtype=torch.float64)
    tree = enumerate_sequences(tabular_logits(uniform), horizon=3, end=None)
    truth = torch.tensor([0.8, -0.5, 0.0, 0.3, 1.2], dtype=torch.float64)
    features = features_of(tree.sequences)
    return features, truth, row_sum(tree.pack(tree.logprobs), tree.num_actions)


def test_max_ent_recovers_the_reward_from_an_exact_distribution(sixty_four):
    """Feature gap <= 1e-4; recovered row reward = truth + constant, spread <= 1e-6."""
    features, truth, base = sixty_four
    assert len(features) == 64
    expected = max_ent_logprobs(truth, features, base).exp() @ features
    found = max_ent_weights(features, expected, base, l2=0.0, tolerance=1e-11)
    gap = max_ent_logprobs(found, features, base).exp() @ features - expected
    assert gap.abs().max() <= 1e-4
    difference = features @ (found - truth)
    assert float(difference.max() - difference.min()) <= 1e-6


def test_max_ent_gradient_is_the_feature_gap(sixty_four):
    features, truth, base = sixty_four
    weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    expected = max_ent_logprobs(truth, features, base).exp() @ features
    (gradient,) = torch.autograd.grad(max_ent_loss(weights, features, expected, base), weights)
    assert_close(gradient, base.exp() @ features - expected, **TOLERANCE)


def test_from_4096_demonstrations_max_ent_is_nearer_the_truth_than_their_frequencies(sixty_four):
    """Total variation <= 1.2x that of the empirical frequencies, over five draws."""
    features, truth, base = sixty_four
    p = max_ent_logprobs(truth, features, base).exp()
    for seed in range(5):
        drawn = torch.multinomial(p, 4096, replacement=True, generator=torch.Generator().manual_seed(seed))
        empirical = torch.bincount(drawn, minlength=64).double() / 4096
        weights = max_ent_weights(features, empirical @ features, base, l2=0.0, tolerance=1e-10)
        model = max_ent_logprobs(weights, features, base).exp()
        assert (model @ features - empirical @ features).abs().max() <= 1e-4
        assert (model - p).abs().sum() <= 1.2 * (empirical - p).abs().sum()


def test_demonstrations_that_no_finite_reward_explains_are_said_so(sixty_four):
    features, _, base = sixty_four
    always = features[features[:, 4] == 1].mean(0)
    with pytest.raises(RecordError, match="give l2 > 0"):
        max_ent_weights(features, always, base, l2=0.0, tolerance=1e-12, max_steps=20)
    weights = max_ent_weights(features, always, base, l2=1e-3, tolerance=1e-9)
    assert weights[4] > 3
