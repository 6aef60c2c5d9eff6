"""Which models the decoder takes, and that it gives their numbers whatever adapters and dtypes are put on them."""

import re

import pytest
import torch
from peft import LNTuningConfig, LoHaConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from upslope.engines.local import LocalEngine
from upslope.policies.causal import CausalPolicy
from upslope.policies.tiny import character_tokenizer, tiny_model
from upslope.records import Prompt, collate

pytestmark = pytest.mark.filterwarnings("ignore")  # peft reads a deprecated property, and says which way Conv1D lies

PLAIN = {"tiny-llama": ["q_proj", "v_proj", "down_proj"], "tiny-gpt2": ["c_attn", "c_proj"]}


def adapted(name, config, *, dtype=torch.float32):
    torch.manual_seed(0)
    model, tokenizer = tiny_model(name, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return CausalPolicy(get_peft_model(model, config), tokenizer)


def lora(**settings):
    return LoraConfig(task_type="CAUSAL_LM", r=4, **settings)


def sampled_gap(policy, engine, sampling):
    prompts = [policy.encode(Prompt(i, text)) for i, text in enumerate(("hello there", "ab", "1+1="))]
    batch, _ = collate(engine.sample(prompts, group_size=3, sampling=sampling(max_new_tokens=20), seed=1))
    with torch.no_grad():
        return float((policy.score(batch, sampling=sampling()).logprobs - batch.engine_logprobs).abs().max())


def randomise(policy):
    """Adapters begin at zero, where every mistake looks right."""
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_added_to_the_weights(name, rslora, sampling):
    policy = adapted(name, lora(target_modules=PLAIN[name], use_rslora=rslora))
    engine = LocalEngine(max_rows=16, cache_gib=0.1, kernels="auto")
    engine.load(policy, version=0)
    assert engine.backend["decoder"].endswith("-like")
    before = sampled_gap(policy, engine, sampling)
    randomise(policy)
    assert sampled_gap(policy, engine, sampling) > 1e-2  # not loaded yet
    engine.load(policy, version=1)
    assert max(before, sampled_gap(policy, engine, sampling)) < 5e-5


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(target_modules=["q_proj", "embed_tokens"]), "embed_tokens|Embedding"),
        (lora(target_modules=["q_proj"], lora_bias=True), "more than a plain low-rank sum"),
        (lora(target_modules=["q_proj"], use_dora=True), "more than a plain low-rank sum"),
        (LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "more than a plain low-rank sum"),
        (LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"]), "no plain norm|part that the decoder"),
    ],
)
def test_other_adapters_are_sampled_by_transformers(config, reason, sampling):
    policy = adapted("tiny-llama", config)
    randomise(policy)
    engine = LocalEngine(max_rows=16, cache_gib=0.1, kernels="auto")
    engine.load(policy, version=0)
    assert engine.backend["decoder"].startswith("transformers, because")
    assert re.search(reason, engine.backend["decoder"])
    assert sampled_gap(policy, engine, sampling) < 5e-5


@pytest.mark.parametrize("name", PLAIN)
def test_bfloat16_weights_take_the_decoder(name, sampling):
    policy = adapted(name, lora(target_modules=PLAIN[name], fan_in_fan_out=name == "tiny-gpt2"), dtype=torch.bfloat16)
    engine = LocalEngine(max_rows=16, cache_gib=0.1, kernels="auto")
    engine.load(policy, version=0)
    assert engine.backend == {"decoder": name.removeprefix("tiny-") + "-like", "linear": "torch"}
    assert sampled_gap(policy, engine, sampling) < 0.5


def test_a_window_that_the_model_ignores_is_not_believed():
    """Llama's config takes a sliding_window, and Llama does not look at it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=99, sliding_window=8, eos_token_id=1, bos_token_id=None, **shape)
    policy = CausalPolicy(LlamaForCausalLM(config).eval(), character_tokenizer())
    engine = LocalEngine(max_rows=16, cache_gib=0.1, kernels="auto")
    engine.load(policy, version=0)
    assert "without saying for which layers" in engine.backend["decoder"]
