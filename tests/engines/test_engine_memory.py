"""What the engine says it takes against what it holds after sampling."""

import pytest

from upslope.engines.local import LocalEngine
from upslope.policies.tiny import tiny_model
from upslope.records import Prompt

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


def test_a_padded_cache_is_as_wide_as_its_longest_row(make_policy, monkeypatch):
    """Two tensors of layers x heads x dim a token and row, in float32."""
    from upslope.engines import local
    from upslope.engines.architecture import UnknownArchitecture

    def unknown(*_):
        raise UnknownArchitecture("this one is not known")

    monkeypatch.setattr(local, "proven_decoder", unknown)
    engine = LocalEngine(max_rows=4, cache_gib=1.0, kernels="auto")
    engine.load(make_policy("tiny-llama"), version=0)
    assert engine.memory(PROMPTS, group_size=3, max_new_tokens=9) == (0, 2 * 2 * 2 * 16 * 4 * 4 * 49)
    assert engine.memory([], group_size=0, max_new_tokens=9) == (0, 0)
