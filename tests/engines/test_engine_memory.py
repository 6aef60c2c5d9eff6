"""What the engine says it takes against what it holds after sampling."""

import pytest
import torch

from upslope.engines import local
from upslope.engines.architecture import UnknownArchitecture
from upslope.engines.local import LocalEngine
from upslope.errors import ModelError
from upslope.policies.tiny import tiny_model
from upslope.records import Prompt, collate

PROMPTS = [Prompt(id=i, content="", tokens=tuple(range(3, 3 + length))) for i, length in enumerate((5, 21, 40))]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
@pytest.mark.parametrize("kernels", ["native", "onednn", "torch"])
def test_the_engine_foretells_its_weights_and_its_cache(make_policy, sampling, name, kernels):
    policy = make_policy(name)
    engine = LocalEngine(max_rows=5, cache_gib=0.1, kernels=kernels)
    engine.load(policy, version=0)
    weights, cache = engine.memory(PROMPTS, group_size=3, max_new_tokens=9)
    engine.sample(PROMPTS, group_size=3, sampling=sampling(max_new_tokens=9), seed=0)
    held = engine._forward._cache
    assert cache == held._keys.nbytes + held._values.nbytes
    model = tiny_model(name)[0]
    linear = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "wpe" not in n)
    head = model.get_output_embeddings().weight.numel()
    linear += head if "embed_tokens.weight" in dict(model.named_parameters()) else 0
    copied = 0 if kernels == "torch" else 4 * linear
    assert copied <= weights <= 1.2 * copied  # the panels of the compiled kernel are filled up


def test_the_budget_bounds_the_cache(make_policy):
    engine = LocalEngine(max_rows=64, cache_gib=1e-3, kernels="torch")
    engine.load(make_policy("tiny-llama"), version=0)
    assert engine.memory(PROMPTS, group_size=64, max_new_tokens=60)[1] == int(1e-3 * 2**30)


@pytest.fixture
def unknown(monkeypatch):
    """No architecture is known to the decoder."""

    def raises(*_):
        raise UnknownArchitecture("this one is not known")

    monkeypatch.setattr(local, "proven_decoder", raises)


def engine_of(policy, *, max_rows=64, cache_gib=1.0):
    engine = LocalEngine(max_rows=max_rows, cache_gib=cache_gib, kernels="auto")
    engine.load(policy, version=0)
    return engine


def test_a_padded_cache_is_as_wide_as_its_longest_row(make_policy, unknown):
    """Two tensors of layers x heads x dim a token and row, in float32."""
    engine = engine_of(make_policy("tiny-llama"), max_rows=4)
    assert engine.memory(PROMPTS, group_size=3, max_new_tokens=9) == (0, 2 * 2 * 2 * 16 * 4 * 4 * 49)
    assert engine.memory([], group_size=0, max_new_tokens=9) == (0, 0)


def held_bytes(forward):
    caches = [forward._cache] if not hasattr(forward._cache, "self_attention_cache") else []
    caches = caches or [forward._cache.self_attention_cache, forward._cache.cross_attention_cache]
    return sum(layer.keys.nbytes + layer.values.nbytes for cache in caches for layer in cache.layers)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_budget_bounds_a_padded_cache_too(make_policy, sampling, unknown, monkeypatch, kind):
    """Rows wait for room and are sampled all the same; what does not fit at all is refused."""
    policy = make_policy("tiny-llama" if kind == "causal" else "tiny-bart", kind=kind)
    setting = sampling(max_new_tokens=9)
    roomy = engine_of(policy)
    expected = roomy.sample(PROMPTS, group_size=3, sampling=setting, seed=0)
    row_gib = roomy.memory(PROMPTS, group_size=1, max_new_tokens=9)[1] / len(PROMPTS) / 2**30
    tight, held = engine_of(policy, cache_gib=2.5 * row_gib), []
    assert tight.memory(PROMPTS, group_size=3, max_new_tokens=9)[1] == int(2.5 * row_gib * 2**30)
    step = type(tight._forward).step
    monkeypatch.setattr(
        type(tight._forward), "step", lambda self, tokens: held.append(held_bytes(self)) or step(self, tokens)
    )
    found = tight.sample(PROMPTS, group_size=3, sampling=setting, seed=0)
    assert [rollout.actions for rollout in found] == [rollout.actions for rollout in expected]
    assert 0.5 * row_gib * 2**30 < max(held) <= 2.5 * row_gib * 2**30
    with pytest.raises(ModelError, match=r"prompt 2 needs .* GiB of key-value cache, but engine.cache_gib is .*raise"):
        engine_of(policy, cache_gib=0.9 * row_gib).sample(PROMPTS, group_size=3, sampling=setting, seed=0)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-bart"])
def test_padding_moves_no_logprob_of_a_decoder_that_takes_no_position_ids(make_policy, sampling, unknown, name):
    """BartForCausalLM counts the slots before a token, padding included: its prompts are computed length by length."""
    policy = make_policy(name)
    engine = engine_of(policy)
    assert ("one length at a time" in engine.backend["decoder"]) == (name == "tiny-bart")
    rollouts = engine.sample(PROMPTS, group_size=2, sampling=sampling(max_new_tokens=9), seed=0)
    scored = policy.score(collate(rollouts)[0], sampling=sampling(max_new_tokens=9)).logprobs
    reported = [logprob for rollout in rollouts for logprob in rollout.engine_logprobs]
    torch.testing.assert_close(torch.tensor(reported), scored.detach(), rtol=0, atol=1e-5)
