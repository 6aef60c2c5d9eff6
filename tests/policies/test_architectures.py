"""Architectures that do something of their own with masks or logits score as their own forward does."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from upslope.engines.local import LocalEngine
from upslope.errors import ModelError
from upslope.policies.causal import CausalPolicy
from upslope.policies.tiny import character_tokenizer
from upslope.records import Prompt, Rollout, collate

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
ARCHITECTURES = {
    "mistral-window-4": ("mistral", {"sliding_window": 4}),
    "mistral-window-8": ("mistral", {"sliding_window": 8}),  # some rows fit, some do not
    "gemma2-softcap": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 4}),
    "gemma2-wide-window": ("gemma2", {"head_dim": 8, "attn_logit_softcapping": 1.0, "sliding_window": 64}),
    "gemma3-local-layers": ("gemma3_text", {"head_dim": 8, "sliding_window": 4}),
    "granite-scaled": ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "cohere-scaled": ("cohere", {"logit_scale": 0.25}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gpt-neox": ("gpt_neox", {}),
    "bloom-alibi": ("bloom", {"n_head": 4, "n_layer": 2}),
    "opt-learned-positions": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "mamba-recurrent": ("mamba", {"state_size": 8}),
}


@pytest.fixture(params=ARCHITECTURES)
def policy(request):
    model_type, settings = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SHAPE, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return CausalPolicy(model.eval(), character_tokenizer(), critic="head")


def batch_of(policy):
    generator = torch.Generator().manual_seed(1)
    rollouts = []
    for group, (length, counts) in enumerate([(7, (9, 3)), (2, (5, 1, 14))]):
        prompt = Prompt(group, "", tokens=tuple(torch.randint(3, 99, (length,), generator=generator).tolist()))
        for sample, count in enumerate(counts):
            actions = tuple(torch.randint(3, 99, (count,), generator=generator).tolist())
            positions = tuple(range(length - 1, length - 1 + count))
            logprobs = (0.0,) * count
            stop = "length" if sample else "eos"
            rollouts.append(
                Rollout(prompt, group, sample, prompt.tokens + actions, actions, positions, logprobs, "", stop)
            )
    return rollouts, collate(rollouts)[0]


def test_scores_are_those_of_the_models_own_forward(policy, sampling):
    """CHECKS 1, 2: windows, softcaps, scaled logits and recurrences included, whatever the layout."""
    rollouts, batch = batch_of(policy)
    expected, last = [], []
    with torch.no_grad():
        for rollout in rollouts:
            output = policy.model(torch.tensor([rollout.tokens]), use_cache=False, output_hidden_states=True)
            logits = output.logits[0, list(rollout.positions)].double()
            expected.append(logits.log_softmax(1)[range(len(rollout.actions)), rollout.actions])
            last.append(policy.module.value_head(output.hidden_states[-1][0, -1]))
        scores = policy.score(batch, sampling=sampling(), values=True)
    expected = torch.cat(expected)
    assert expected.std() > 0.05
    assert_close(scores.logprobs.double(), expected, rtol=0, atol=2e-5)
    assert_close(scores.bootstrap, torch.stack(last).masked_fill(batch.terminated, 0.0), rtol=0, atol=2e-5)


def test_engine_agrees_with_scoring(policy, sampling):
    """CHECKS 15, 22: generation with the architecture's own cache, left-padded, against the recomputation."""
    engine = LocalEngine(max_rows=16, cache_gib=0.1, kernels="auto")
    if policy.model.config.model_type == "mamba":
        with pytest.raises(ModelError, match="MambaForCausalLM keeps no key-value cache"):
            engine.load(policy, version=0)
        return
    engine.load(policy, version=0)
    prompts = [policy.encode(Prompt(i, text)) for i, text in enumerate(("hello there", "ab", "1+1="))]
    batch, _ = collate(engine.sample(prompts, group_size=3, sampling=sampling(max_new_tokens=10), seed=1))
    with torch.no_grad():
        recomputed = policy.score(batch, sampling=sampling()).logprobs
    assert_close(batch.engine_logprobs, recomputed, rtol=0, atol=5e-5)
