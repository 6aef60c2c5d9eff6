"""Every loss against a loop over its formula, its gradient against finite differences, all in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import RecordError
from upslope.losses import (
    cispo,
    clip_fraction,
    clip_mask,
    clipped_surrogate,
    ratio_statistics,
    reinforce,
    row_truncated_importance_weights,
    sequence_log_ratios,
    sequence_surrogate,
    truncated_importance_weights,
    value_loss,
    weighted_sum,
)
from upslope.records import pack, unpack

NUM_ACTIONS = torch.tensor([3, 1, 5, 2])
SIZE = 11
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def draw(seed=0, spread=0.6):
    """logprobs, old_logprobs, advantages, weights [M]: ratios on both sides of every clip, some advantages 0."""
    generator = torch.Generator().manual_seed(seed)
    old_logprobs = -torch.rand(SIZE, generator=generator, dtype=torch.float64) - 1.0
    logprobs = old_logprobs + spread * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    advantages = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    advantages[4] = 0.0
    weights = torch.rand(SIZE, generator=generator, dtype=torch.float64)
    return logprobs.requires_grad_(), old_logprobs, advantages, weights


def clip(x, low, high):
    return min(max(x, low), high)


def rows():
    """Row of each action, by loop."""
    return [row for row, count in enumerate(NUM_ACTIONS.tolist()) for _ in range(count)]


def row_ratios(logprobs, old_logprobs, normalised):
    ratios = []
    for row in rows():
        gaps = [a - b for a, b, r in zip(logprobs, old_logprobs, rows(), strict=True) if r == row]
        ratios.append(math.exp(sum(gaps) / (len(gaps) if normalised else 1)))
    return ratios


def reference(name, logprobs, old_logprobs, advantages, weights):
    """The published formula of each loss, term by term, as plain Python; denominator 7."""
    ratios = [math.exp(a - b) for a, b in zip(logprobs, old_logprobs, strict=True)]
    if name in ("rloo", "gspo", "gspo_token"):
        ratios = row_ratios(logprobs, old_logprobs, normalised=name != "rloo")
    total = 0.0
    for lp, ratio, a, w in zip(logprobs, ratios, advantages, weights, strict=True):
        term = {
            "reinforce": a * lp,
            "rloo": ratio * a,
            "ppo": min(ratio * a, clip(ratio, 0.8, 1.2) * a),
            "dapo": min(ratio * a, clip(ratio, 0.8, 1.28) * a),
            "dual": max(min(ratio * a, clip(ratio, 0.8, 1.2) * a), 1.5 * a)
            if a < 0
            else min(ratio * a, clip(ratio, 0.8, 1.2) * a),
            "gspo": min(ratio * a, clip(ratio, 0.9, 1.1) * a),
            "gspo_token": min(ratio * a, clip(ratio, 0.9, 1.1) * a),
            "cispo": min(ratio, 1.28) * a * lp,
            "cispo_low": clip(ratio, 0.8, 1.28) * a * lp,
        }[name]
        total -= w * term
    return total / 7.0


def compute(name, logprobs, old_logprobs, advantages, weights):
    scale = {"weights": weights, "denominator": 7.0}
    if name == "reinforce":
        return reinforce(logprobs, advantages, **scale)
    if name in ("ppo", "dapo", "dual"):
        high, dual = (0.28 if name == "dapo" else 0.2), (1.5 if name == "dual" else None)
        clips = {"clip_low": 0.2, "clip_high": high, "dual_clip": dual}
        return clipped_surrogate(logprobs, old_logprobs, advantages, **clips, **scale)
    if name in ("cispo", "cispo_low"):
        low = 0.2 if name == "cispo_low" else None
        return cispo(logprobs, old_logprobs, advantages, clip_low=low, clip_high=0.28, **scale)
    bound = None if name == "rloo" else 0.1
    settings = {"clip_low": bound, "clip_high": bound, "length_normalised": name != "rloo"}
    token_level = name == "gspo_token"
    return sequence_surrogate(
        logprobs, old_logprobs, advantages, NUM_ACTIONS, token_level=token_level, **settings, **scale
    )


LOSSES = ("reinforce", "rloo", "ppo", "dapo", "dual", "gspo", "gspo_token", "cispo", "cispo_low")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_the_value_is_the_formula(name, seed):
    """CHECKS 24."""
    inputs = draw(seed)
    expected = reference(name, *(x.tolist() for x in inputs))
    assert_close(compute(name, *inputs).item(), expected, **TOLERANCE)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name):
    """CHECKS 24: central differences of the Python formula. CISPO and GSPO-token hold their ratios constant."""
    logprobs, old_logprobs, advantages, weights = draw()
    (actual,) = torch.autograd.grad(compute(name, logprobs, old_logprobs, advantages, weights), logprobs)
    plain = [x.tolist() for x in (logprobs, old_logprobs, advantages, weights)]
    expected, step = [], 1e-6
    for index in range(SIZE):
        if name in ("cispo", "cispo_low"):
            ratio = math.exp(plain[0][index] - plain[1][index])
            low = 0.8 if name == "cispo_low" else 0.0
            expected.append(-plain[3][index] * clip(ratio, low, 1.28) * plain[2][index] / 7.0)
            continue
        if name == "gspo_token":
            ratio, a = row_ratios(plain[0], plain[1], normalised=True)[index], plain[2][index]
            alive = ratio <= 1.1 if a > 0 else ratio >= 0.9
            expected.append(-plain[3][index] * ratio * a / 7.0 if alive else 0.0)
            continue
        up, down = list(plain[0]), list(plain[0])
        up[index], down[index] = up[index] + step, down[index] - step
        rise = reference(name, up, *plain[1:]) - reference(name, down, *plain[1:])
        expected.append(rise / (2 * step))
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)


def test_gspo_token_is_gspo_where_advantages_are_equal_in_a_row():
    """Zheng et al. 2025, section 4.3: same value and gradient; weights 1/n make one term a row."""
    logprobs, old_logprobs, _, _ = draw(spread=0.05)
    advantages = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)[torch.tensor(rows())]
    weights = 1.0 / NUM_ACTIONS[torch.tensor(rows())].double()
    pair = [compute(name, logprobs, old_logprobs, advantages, weights) for name in ("gspo", "gspo_token")]
    assert_close(pair[0], pair[1], **TOLERANCE)
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in pair]
    assert_close(gradients[0], gradients[1], **TOLERANCE)
    assert gradients[0].abs().min() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_without_gradient_are_those_the_clip_killed(name):
    """CHECKS 25: per algorithm, exactly; and `clip_mask` names the same ones."""
    killed_anywhere = False
    for seed in range(5):
        logprobs, old_logprobs, advantages, weights = draw(seed)
        (gradient,) = torch.autograd.grad(compute(name, logprobs, old_logprobs, advantages, weights), logprobs)
        is_sequence = name in ("rloo", "gspo", "gspo_token")
        plain = logprobs.tolist(), old_logprobs.tolist()
        ratios = row_ratios(*plain, normalised=name != "rloo") if is_sequence else None
        ratios = ratios or [math.exp(a - b) for a, b in zip(*plain, strict=True)]
        low, high, dual = {
            "ppo": (0.8, 1.2, math.inf),
            "dapo": (0.8, 1.28, math.inf),
            "dual": (0.8, 1.2, 1.5),
            "gspo": (0.9, 1.1, math.inf),
            "gspo_token": (0.9, 1.1, math.inf),
        }.get(name, (0.0, math.inf, math.inf))
        killed = [
            (a > 0 and r > high) or (a < 0 and (r < low or r > dual))
            for a, r in zip(advantages.tolist(), ratios, strict=True)
        ]
        if name == "gspo":  # one ratio a row: an action moves with every unclipped term of its row
            alive_rows = {r for r, k, a in zip(rows(), killed, advantages.tolist(), strict=True) if not k and a != 0}
            silent = [row not in alive_rows for row in rows()]
        elif name == "rloo":
            silent = [False] * SIZE
        else:
            silent = [k or a == 0 for k, a in zip(killed, advantages.tolist(), strict=True)]
        assert (gradient == 0).tolist() == silent
        log_ratios = logprobs - old_logprobs
        if is_sequence:
            log_ratios = sequence_log_ratios(
                logprobs, old_logprobs, NUM_ACTIONS, length_normalised=name != "rloo"
            ).detach()
        bounds = {
            "clip_low": None if low == 0.0 else 1.0 - low,
            "clip_high": None if high == math.inf else high - 1.0,
            "dual_clip": None if dual == math.inf else dual,
        }
        assert clip_mask(log_ratios, advantages, **bounds).tolist() == killed
        assert clip_fraction(log_ratios, advantages, **bounds).item() == pytest.approx(sum(killed) / SIZE)
        killed_anywhere |= any(killed)
    assert killed_anywhere == (name in ("ppo", "dapo", "dual", "gspo", "gspo_token"))


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_current_policy_receives_gradient(name):
    """CHECKS 19: old log-probabilities and advantages are frozen, even where they are the policy's own tensors."""
    logprobs, _, _, weights = draw()
    frozen = compute(name, logprobs, logprobs.detach(), logprobs.detach() + 2, weights)
    alias = compute(name, logprobs, logprobs, logprobs + 2, weights)
    (expected,) = torch.autograd.grad(frozen, logprobs)
    (actual,) = torch.autograd.grad(alias, logprobs)
    assert_close(actual, expected, rtol=0, atol=0)
    assert (actual != 0).all()


def test_the_second_inner_step_has_a_ratio_that_is_not_one():
    """CHECKS 19: old_logprobs stay what they were; the clip then stops the policy, a fresh ratio never would."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    old_logprobs = logits.log_softmax(0).detach()[:1]
    one = torch.ones(1, dtype=torch.float64)
    clips = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    for _ in range(50):
        logprobs = logits.log_softmax(0)[:1]
        loss = clipped_surrogate(logprobs, old_logprobs, one, **clips, weights=one, denominator=1.0)
        with torch.no_grad():
            logits -= 0.1 * torch.autograd.grad(loss, logits)[0]
    ratio = (logits.log_softmax(0)[:1] - old_logprobs).exp().item()
    assert 1.2 < ratio < 1.3


@pytest.mark.parametrize("clip_range", [None, 0.3])
def test_the_value_loss_is_its_formula(clip_range):
    """CHECKS 24, 33: the clip is around the rollout's values; targets and old values carry no gradient."""
    generator = torch.Generator().manual_seed(0)
    values, old_values, returns, weights = torch.randn(4, SIZE, generator=generator, dtype=torch.float64)
    for x in (values, old_values, returns):
        x.requires_grad_()
    expected_gradient, total = [], 0.0
    for v, old, g, w in zip(*(x.tolist() for x in (values, old_values, returns, weights)), strict=True):
        limited = v if clip_range is None else clip(v, old - clip_range, old + clip_range)
        total += 0.5 * w * max((v - g) ** 2, (limited - g) ** 2) / 7.0
        moves = (v - g) ** 2 > (limited - g) ** 2 or abs(limited - v) < 1e-12
        expected_gradient.append(w * (v - g) / 7.0 if moves else 0.0)
    loss = value_loss(values, old_values, returns, clip=clip_range, weights=weights, denominator=7.0)
    assert_close(loss.item(), total, **TOLERANCE)
    loss.backward()
    assert_close(values.grad, torch.tensor(expected_gradient, dtype=torch.float64), **TOLERANCE)
    assert old_values.grad is None
    assert returns.grad is None
    assert clip_range is None or 0.0 in expected_gradient, "some value must be held by the clip"


def test_importance_weights_are_capped_ratios():
    """CHECKS 22: per action and per row; the cap binds; no gradient."""
    logprobs, engine, _, _ = draw()
    ratios = [math.exp(a - b) for a, b in zip(logprobs.tolist(), engine.tolist(), strict=True)]
    expected = torch.tensor([min(r, 1.5) for r in ratios], dtype=torch.float64)
    actual = truncated_importance_weights(logprobs, engine, cap=1.5)
    assert_close(actual, expected, **TOLERANCE)
    assert not actual.requires_grad
    assert 1.5 in actual.tolist()
    assert actual.min() < 1.0
    whole = row_ratios(logprobs.tolist(), engine.tolist(), normalised=False)
    expected = torch.tensor([min(r, 1.5) for r in whole], dtype=torch.float64)
    assert_close(row_truncated_importance_weights(logprobs, engine, NUM_ACTIONS, cap=1.5), expected, **TOLERANCE)


def test_ratio_statistics_are_their_formulas():
    """CHECKS 22: k3, effective sample size and the largest deviation, against loops and in the extreme."""
    logprobs, old_logprobs, _, _ = draw()
    gaps = (logprobs - old_logprobs).tolist()
    w = [math.exp(x) for x in gaps]
    actual = ratio_statistics(logprobs, old_logprobs)
    assert actual.k3 == pytest.approx(sum(r - 1 - x for r, x in zip(w, gaps, strict=True)) / SIZE, abs=1e-9)
    assert actual.effective_sample_size == pytest.approx(sum(w) ** 2 / (SIZE * sum(r * r for r in w)), abs=1e-9)
    assert actual.max_deviation == pytest.approx(max(abs(r - 1) for r in w), abs=1e-9)
    same = ratio_statistics(old_logprobs, old_logprobs)
    assert (same.k3, same.effective_sample_size, same.max_deviation) == (0.0, 1.0, 0.0)
    one_sided = ratio_statistics(torch.tensor([0.0, -200.0]), torch.tensor([-200.0, 0.0]))
    assert one_sided.effective_sample_size == pytest.approx(0.5)
    with pytest.raises(RecordError, match="no actions"):
        ratio_statistics(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_padded_slots_change_no_loss_and_no_gradient(name, poison):
    """CHECKS 7: padded [B, T] inputs poisoned at padding; packed, neither the value nor a gradient notices."""
    logprobs, old_logprobs, advantages, weights = draw()
    expected = compute(name, logprobs, old_logprobs, advantages, weights)
    (expected_gradient,) = torch.autograd.grad(expected, logprobs)
    padded, mask = unpack(logprobs.detach(), NUM_ACTIONS, fill=poison)
    padded.requires_grad_()
    others = [unpack(x, NUM_ACTIONS, fill=poison)[0] for x in (old_logprobs, advantages, weights)]
    actual = compute(name, *(pack(x, mask)[0] for x in (padded, *others)))
    (gradient,) = torch.autograd.grad(actual, padded)
    assert torch.equal(actual, expected)
    assert torch.equal(gradient[mask], expected_gradient)
    assert (gradient[~mask] == 0).all()


def test_losses_keep_float64_and_lift_half_precision_to_float32():
    logprobs, old_logprobs, advantages, weights = (x.detach() for x in draw())
    for name in LOSSES:
        assert compute(name, logprobs, old_logprobs, advantages, weights).dtype == torch.float64
        half = [x.bfloat16() for x in (logprobs, old_logprobs, advantages, weights)]
        loss = compute(name, *half)
        assert loss.dtype == torch.float32
        assert_close(loss.double(), compute(name, *(x.double() for x in half)), rtol=0, atol=1e-6)
    assert weighted_sum(logprobs.half(), weights=weights.half(), denominator=1.0).dtype == torch.float32
