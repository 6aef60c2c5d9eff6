"""What causal policies promise beside: packed rows, shared prompts and a chunked head change no number."""

import pytest
import torch
from kinds import widen
from torch.testing import assert_close


def test_a_shared_prompt_is_scored_as_separate_rows(causal_kind, make_batch, sampling):
    """CHECKS 2: the layout that computes a group's prompt once changes no number."""
    policy = causal_kind.build(critic="head")
    assert policy.shares_prompts
    batch = make_batch(causal_kind.rows(policy))
    together = policy.score(batch, sampling=sampling(), values=True)
    policy.shares_prompts = False
    separate = policy.score(batch, sampling=sampling(), values=True)
    for name in ("logprobs", "values", "bootstrap"):
        assert_close(getattr(together, name), getattr(separate, name), rtol=0, atol=1e-5)
    apart = batch.replace(group=torch.arange(batch.num_rows))
    assert_close(policy.score(apart, sampling=sampling()).logprobs, together.logprobs, rtol=0, atol=1e-5)


def _scored_gradients(policy, batch, sampling):
    scores = policy.score(batch, sampling=sampling(0.8), entropy=True, values=True)
    per_action = scores.logprobs + 0.3 * scores.entropy + 0.7 * scores.values
    mixed = torch.linspace(-1.0, 2.0, len(per_action), dtype=per_action.dtype)
    return torch.autograd.grad(per_action @ mixed + scores.bootstrap.sum(), list(policy.module.parameters()))


@pytest.mark.parametrize("critic", ["head", "separate"])
@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-9), (False, 1e-5)])
def test_gradients_are_those_of_padded_separate_rows(
    causal_kind, make_batch, sampling, wide, tolerance, critic, monkeypatch
):
    """Packed rows, shared prompts and a chunked head change no gradient: 1e-9 relative in float64, 1e-5 in float32."""
    policy = causal_kind.build(critic=critic)
    if wide:
        widen(policy)
    batch = make_batch(causal_kind.rows(policy))
    assert policy.packs_rows
    assert policy.shares_prompts
    assert policy.chunks_head
    ways = [(1, True), (1, False), (9, True), (128, True), (128, False)]
    found = []
    for neighbourhood, policy.shares_prompts in ways:
        monkeypatch.setattr("upslope.policies.attention._NEIGHBOURHOOD", neighbourhood)
        found.append(_scored_gradients(policy, batch, sampling))
    policy.packs_rows = policy.shares_prompts = policy.chunks_head = False
    expected = _scored_gradients(policy, batch, sampling)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for gradients in found:
        for one, other in zip(gradients, expected, strict=True):
            assert_close(one, other, rtol=tolerance, atol=tolerance * scale)
