"""Preference and reward-model losses: loops over their formulas in float64, closed-form gradients, limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import RecipeError, RecordError
from upslope.estimators import row_sum
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, tabular_logits
from upslope.losses import (
    bradley_terry,
    centering,
    dpo,
    ipo,
    kto,
    kto_reference_kl,
    ordinal,
    orpo,
    plackett_luce,
    rating_regression,
    robust_dpo,
)

TOLERANCE = {"rtol": 0, "atol": 1e-12}
SIZE = 6
DESIRABLE = [True, False, True, True, False, False]
LEVELS = [0, 3, 1, 2, 3, 0]
THRESHOLDS = [-1.5, 0.2, 1.0]


def draw(seed=0):
    """Two vectors of numbers below 0, and weights."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, weights = (torch.rand(SIZE, generator=generator, dtype=torch.float64) for _ in range(3))
    return (-3 * chosen).requires_grad_(), (-3 * rejected).requires_grad_(), weights


def s(x):
    return 1 / (1 + math.exp(-x))


def log_odds(x):
    return math.log(math.exp(x) / (1 - math.exp(x)))


def level(index, a):
    """The probability of a rating by proportional odds."""
    bounds = [-math.inf, *THRESHOLDS, math.inf]
    below, above = bounds[LEVELS[index]], bounds[LEVELS[index] + 1]
    return (1.0 if above == math.inf else s(above - a)) - (0.0 if below == -math.inf else s(below - a))


FORMULAS = {
    "dpo": lambda i, a, b: -math.log(s(0.3 * (a - b))),
    "conservative": lambda i, a, b: -0.8 * math.log(s(0.3 * (a - b))) - 0.2 * math.log(s(0.3 * (b - a))),
    "robust": lambda i, a, b: (-0.8 * math.log(s(0.3 * (a - b))) + 0.2 * math.log(s(0.3 * (b - a)))) / 0.6,
    "ipo": lambda i, a, b: (a - b - 1 / 0.6) ** 2,
    "kto": lambda i, a, b: (
        1.5 * (1 - s(0.3 * (a - 0.4))) if DESIRABLE[i] else 0.5 * (1 - s(0.3 * (0.4 - a)))
    ),
    "orpo": lambda i, a, b: -a - 0.3 * math.log(s(log_odds(a) - log_odds(b))),
    "bradley_terry": lambda i, a, b: -math.log(s(a - b - 0.7)),
    "centering": lambda i, a, b: (a + b) ** 2,
    "regression": lambda i, a, b: (a - b) ** 2 / 2,
    "ordinal": lambda i, a, b: -math.log(level(i, a)),
}  # fmt: skip


def compute(name, a, b, weights):
    scale = {"weights": weights, "denominator": 7.0}
    kto_settings = {"reference_kl": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    return {
        "dpo": lambda: dpo(a, b, beta=0.3, label_smoothing=0.0, **scale),
        "conservative": lambda: dpo(a, b, beta=0.3, label_smoothing=0.2, **scale),
        "robust": lambda: robust_dpo(a, b, beta=0.3, flip_rate=0.2, **scale),
        "ipo": lambda: ipo(a, b, beta=0.3, **scale),
        "kto": lambda: kto(a, torch.tensor(DESIRABLE), beta=0.3, **kto_settings, **scale),
        "orpo": lambda: orpo(a, b, beta=0.3, **scale),
        "bradley_terry": lambda: bradley_terry(a, b, margin=0.7, **scale),
        "centering": lambda: centering(a, b, **scale),
        "regression": lambda: rating_regression(a, b, **scale),
        "ordinal": lambda: ordinal(a, torch.tensor(LEVELS), torch.tensor(THRESHOLDS, dtype=torch.float64), **scale),
    }[name]()


def reference(name, a, b, weights):
    return sum(w * FORMULAS[name](i, x, y) for i, (x, y, w) in enumerate(zip(a, b, weights, strict=True))) / 7.0


@pytest.mark.parametrize("name", FORMULAS)
def test_the_value_is_the_formula_and_the_gradient_that_of_finite_differences(name):
    """CHECKS 24."""
    for seed in range(3):
        a, b, weights = draw(seed)
        loss = compute(name, a, b, weights)
        plain = [x.tolist() for x in (a, b, weights)]
        assert_close(loss.item(), reference(name, *plain), **TOLERANCE)
    gradients = torch.autograd.grad(loss, [a, b], materialize_grads=True, allow_unused=True)
    frozen = name in ("kto", "ordinal", "regression")  # the second argument is no input, or a target
    for which, gradient in enumerate(gradients):
        for index in range(SIZE):
            values = []
            for change in (1e-6, -1e-6):
                moved = [list(x) for x in plain]
                moved[which][index] += change
                values.append(reference(name, *moved))
            expected = 0.0 if which and frozen else (values[0] - values[1]) / 2e-6
            assert gradient[index].item() == pytest.approx(expected, abs=1e-8)


def test_rankings_are_products_of_choices():
    """Plackett and Luce: the probabilities of all rankings of four items add to 1; the top two are chosen in turn."""
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    one = {"weights": torch.ones(1), "denominator": 1.0}
    total = 0.0
    for order in itertools.permutations(range(4)):
        loss = plackett_luce(scores[list(order)], torch.tensor([4]), top=None, **one)
        left, expected = list(order), 1.0
        for item in order:
            expected *= math.exp(scores[item]) / sum(math.exp(scores[other]) for other in left)
            left.remove(item)
        assert math.exp(-loss) == pytest.approx(expected, abs=1e-12)
        total += expected
    assert total == pytest.approx(1.0)
    best = plackett_luce(scores, torch.tensor([4]), top=1, **one)
    assert_close(best, -scores.log_softmax(0)[0], **TOLERANCE)
    three = plackett_luce(scores, torch.tensor([4]), top=3, **one)  # the last choice is none
    assert_close(three, plackett_luce(scores, torch.tensor([4]), top=None, **one), **TOLERANCE)


def test_packed_rankings_of_unequal_size_and_pairs_as_rankings():
    a, b, weights = draw()
    pairs = torch.stack((a, b), 1).flatten()
    count = torch.full((SIZE,), 2)
    found = plackett_luce(pairs, count, top=None, weights=weights, denominator=7.0)
    assert_close(found, bradley_terry(a, b, margin=0.0, weights=weights, denominator=7.0), **TOLERANCE)
    both = plackett_luce(pairs, torch.tensor([5, 2, 3, 2]), top=2, weights=weights[:4], denominator=1.0)
    alone = [
        plackett_luce(part, torch.tensor([len(part)]), top=2, weights=weights[i : i + 1], denominator=1.0)
        for i, part in enumerate(pairs.split([5, 2, 3, 2]))
    ]
    assert_close(both, sum(alone), **TOLERANCE)
    (gradient,) = torch.autograd.grad(both, a)
    assert gradient.isfinite().all()
    with pytest.raises(RecordError, match="fewer than two items"):
        plackett_luce(pairs, torch.tensor([11, 1]), top=None, weights=weights[:2], denominator=1.0)


def test_ordinal_levels_are_probabilities_far_out_as_well():
    """They add to 1 at any score, and no gradient is lost or NaN where a level is all but impossible."""
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)
    for score in (-60.0, -2.0, 0.1, 60.0):
        scores = torch.full((4,), score, dtype=torch.float64, requires_grad=True)
        losses = [
            ordinal(scores[k : k + 1], torch.tensor([k]), thresholds, weights=torch.ones(1), denominator=1.0)
            for k in range(4)
        ]
        assert sum(math.exp(-loss.item()) for loss in losses) == pytest.approx(1.0)
        (gradient,) = torch.autograd.grad(sum(losses), scores)
        assert gradient.isfinite().all()
        assert (gradient.abs() > 1e-3).any()


def test_robust_dpo_is_unbiased_under_flips_and_conservative_is_not():
    """(1 - e) loss(right label) + e loss(flipped label) is DPO's on clean labels."""
    a, b, weights = draw()
    scale = {"weights": weights, "denominator": 1.0}
    clean = dpo(a, b, beta=0.5, label_smoothing=0.0, **scale)
    for rate in (0.0, 0.1, 0.4):
        settings = {"beta": 0.5, "flip_rate": rate, **scale}
        mixed = (1 - rate) * robust_dpo(a, b, **settings) + rate * robust_dpo(b, a, **settings)
        assert_close(mixed, clean, **TOLERANCE)
    biased = 0.6 * dpo(a, b, beta=0.5, label_smoothing=0.4, **scale)
    biased = biased + 0.4 * dpo(b, a, beta=0.5, label_smoothing=0.4, **scale)
    assert (biased - clean).abs() > 1e-2
    with pytest.raises(RecipeError, match="must lie in"):
        robust_dpo(a, b, beta=0.5, flip_rate=0.5, **scale)


def test_what_each_loss_drives_the_gap_to():
    """The zero of the gradient: none for DPO, log((1 - e) / e) / beta for the conservative, 1 / (2 beta) for IPO."""
    one = {"weights": torch.ones(1), "denominator": 1.0}
    zero = torch.zeros(1, dtype=torch.float64)

    def slope(loss, gap):
        gap = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss(gap), gap)[0].item()

    assert slope(lambda gap: dpo(gap, zero, beta=0.1, label_smoothing=0.0, **one), 50.0) < 0
    edge = math.log(0.9 / 0.1) / 0.1
    assert slope(lambda gap: dpo(gap, zero, beta=0.1, label_smoothing=0.1, **one), edge) == pytest.approx(0, abs=1e-12)
    assert slope(lambda gap: ipo(gap, zero, beta=0.1, **one), 5.0) == pytest.approx(0, abs=1e-12)


def test_the_reference_kl_is_a_constant_at_least_zero():
    mismatched = torch.tensor([0.5, -0.1, 0.8], requires_grad=True)
    assert_close(kto_reference_kl(mismatched), torch.tensor(0.4))
    assert not kto_reference_kl(mismatched).requires_grad
    assert kto_reference_kl(-mismatched).item() == 0.0


def tree_of(table):
    return enumerate_sequences(tabular_logits(table), horizon=3, end=2)


def test_spins_gradient_vanishes_where_the_opponent_is_the_data():
    """Over all pairs of a demonstration and a row of the opponent's, exactly; and does not where they differ."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(num_prefixes(3, horizon=3), 3, generator=generator, dtype=torch.float64)
    policy, opponent = tree_of(table.requires_grad_()), tree_of(table.detach())
    rows = row_sum(policy.pack(policy.logprobs), policy.num_actions)
    log_ratios = rows - row_sum(opponent.pack(opponent.logprobs), opponent.num_actions)
    count = len(log_ratios)

    def gradient(data):
        weights = (data[:, None] * opponent.probabilities[None]).flatten()
        chosen, rejected = log_ratios.repeat_interleave(count), log_ratios.repeat(count)
        loss = dpo(chosen, rejected, beta=0.7, label_smoothing=0.0, weights=weights, denominator=1.0)
        return torch.autograd.grad(loss, table, retain_graph=True)[0]

    data = opponent.probabilities
    assert gradient(data).norm() < 1e-12
    assert gradient(data.roll(1)).norm() > 1e-2


def test_dpo_recovers_the_reward_that_made_the_preferences():
    """At the minimum over exact Bradley-Terry preferences, beta log pi / pi_ref is the reward up to a constant."""
    generator = torch.Generator().manual_seed(1)
    rewards, reference = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    reference = reference.log_softmax(0)
    logits = reference.clone().requires_grad_()
    pairs = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    weights = torch.sigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]])
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        ratios = logits.log_softmax(0) - reference
        chosen, rejected = ratios[pairs[:, 0]], ratios[pairs[:, 1]]
        loss = dpo(chosen, rejected, beta=0.5, label_smoothing=0.0, weights=weights, denominator=64.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    gap = 0.5 * (logits.detach().log_softmax(0) - reference) - rewards
    assert float(gap.max() - gap.min()) < 1e-6
