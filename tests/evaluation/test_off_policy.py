"""Estimates from another model's rollouts, against the exact oracle; and when nothing is estimated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from upslope.errors import DataError
from upslope.evaluation.off_policy import log_ratios, screen
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, score_rewards, solve, tabular_logits

K, HORIZON = 3, 3


def worlds(shift):
    """Two policies over 27 sequences, exact: log-ratios, rewards and probabilities [27], and J of the second."""
    generator = torch.Generator().manual_seed(1)
    shape = (num_prefixes(K, horizon=HORIZON), K)
    table = torch.randn(shape, generator=generator, dtype=torch.float64)
    moved = table + shift * torch.randn(shape, generator=generator, dtype=torch.float64)
    logged, candidate = (enumerate_sequences(tabular_logits(t), horizon=HORIZON, end=None) for t in (table, moved))
    paid = score_rewards(candidate, lambda s: float(s.count(1)) / 3)
    ratios = (candidate.probabilities / logged.probabilities).log()
    rewards = torch.tensor([s.count(1) / 3 for s in logged.sequences], dtype=torch.float64)
    return (
        ratios.numpy(),
        rewards.numpy(),
        logged.probabilities.numpy(),
        float(solve(candidate, paid, gamma=1.0).objective),
    )


def repeated(shift, wrong=0.0, **critic):
    ratios, rewards, chances, truth = worlds(shift)
    generator = np.random.default_rng(2)
    found = []
    for _ in range(400):
        rows = generator.choice(27, size=300, p=chances)
        found.append(
            screen(ratios[rows] + wrong, rewards[rows], **{k: v(rewards[rows], truth) for k, v in critic.items()})
        )
    return found, truth


def test_both_estimates_are_those_of_the_candidate():
    """400 repetitions of 300 logged rollouts: centred on J of the candidate, covered by the intervals in 93 to 97%."""
    found, truth = repeated(0.3, baselines=lambda r, j: np.full_like(r, 0.2))
    for name in ("self_normalised", "doubly_robust"):
        intervals = [getattr(each, name) for each in found]
        errors = np.array([interval.estimate for interval in intervals]) - truth
        assert abs(errors.mean()) <= 3 * errors.std() / 20 + 1e-3, name
        assert 0.925 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.975, name
    assert abs(np.mean([each.logged for each in found]) - truth) > 0.01


def test_a_right_critic_makes_up_for_wrong_weights_within_what_is_let_through():
    """q = r and v = J: weights that are 1% too large play no part; beside a baseline of 0 they do."""
    found, truth = repeated(0.1, math.log(1.01), baselines=np.full_like, controls=lambda r, _: r)
    assert all(each.refused is None for each in found)
    assert all(each.doubly_robust.estimate == pytest.approx(truth, abs=1e-12) for each in found)
    plain, _ = repeated(0.1, math.log(1.01), baselines=lambda r, j: np.zeros_like(r))
    assert np.mean([each.doubly_robust.estimate for each in plain]) == pytest.approx(1.01 * truth, rel=0.006)


def test_far_candidates_and_wrong_weights_are_refused():
    far, _ = repeated(2.5)
    assert all("sample the candidate" in each.refused for each in far)
    assert all(each.self_normalised is None for each in far)
    wrong, _ = repeated(0.1, math.log(1.3))
    assert all("average to 1.3" in each.refused or "average to 1.2" in each.refused for each in wrong)
    with pytest.raises(DataError, match="not a finite number"):
        screen(np.array([0.0, math.nan]), np.ones(2))


def test_effective_share_is_kishs():
    found = screen(np.log([1.0, 1.0, 0.5, 1.5]), np.ones(4))
    assert found.share == pytest.approx(16 / (4 * (1 + 1 + 0.25 + 2.25)))


def test_ratios_of_real_rollouts(make_policy, sampling):
    """A model's own rollouts weigh 1; another's by its plain forward."""
    from upslope.engines.local import LocalEngine
    from upslope.records import Prompt

    own, other = make_policy("tiny-llama", seed=1), make_policy("tiny-llama", seed=2)
    engine = LocalEngine(max_rows=4, cache_gib=0.1, kernels="auto")
    engine.load(own, version=0)
    prompts = [own.encode(Prompt(i, f"prompt {i}")) for i in range(3)]
    how = sampling(0.8, max_new_tokens=5)
    rows = engine.sample(prompts, group_size=2, sampling=how, seed=0)
    assert log_ratios(rows, own, sampling=how, logged=how) == pytest.approx([0.0] * 6, abs=1e-4)
    found = log_ratios(rows, other, sampling=how, logged=how)
    for row, ratio in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = other.model(torch.tensor([row.tokens])).logits[0] / 0.8
        taken = logits.log_softmax(1)[list(row.positions), list(row.actions)].sum().item()
        assert ratio == pytest.approx(taken - sum(row.engine_logprobs), abs=1e-3)
    for bad in (sampling(0.0), sampling(1.0, top_p=0.9), sampling(1.0, top_k=5)):
        with pytest.raises(DataError, match="logged sampling is truncated"):
            log_ratios(rows, other, sampling=how, logged=bad)
    with pytest.raises(DataError, match="0 log-probabilities"):
        log_ratios([rows[0].replace(engine_logprobs=())], other, sampling=how, logged=how)
