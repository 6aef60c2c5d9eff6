"""The causal policy's own ways: prompts and chat templates, freezing, LoRA, tiny models, the value head."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close

from upslope.errors import DataError, ModelError
from upslope.policies.heads import ValueHead
from upslope.policies.tiny import character_tokenizer
from upslope.records import Prompt, Rollout, collate

CHAT = ({"role": "user", "content": "1+1"},)


def one_row(policy, text="12+7=", actions=(5, 9, 30), stop="eos"):
    prompt = policy.encode(Prompt(0, text))
    start = len(prompt.tokens) - 1
    rollout = Rollout(
        prompt, 0, 0, prompt.tokens + actions, actions, tuple(range(start, start + len(actions))), (0.0,) * 3, "", stop
    )
    return collate([rollout])[0]


@pytest.fixture
def with_bos(make_policy):
    """A policy whose tokenizer puts a BOS in front of all text, and whose chat template writes one as well."""
    policy = make_policy("tiny-llama")
    tokenizer = policy.tokenizer
    tokenizer.bos_token = "^"  # some token of the vocabulary
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="^ $A", special_tokens=[("^", bos)])
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert tokenizer("ab")["input_ids"][0] == bos
    return policy


def test_exactly_one_bos(with_bos):
    """CHECKS 12: one BOS in front of plain text and of a chat, none inside a completion."""
    bos = with_bos.tokenizer.bos_token_id
    for content in ("1+1", CHAT):
        tokens = with_bos.encode(Prompt(0, content)).tokens
        assert tokens[0] == bos
        assert tokens.count(bos) == 1
    assert bos not in with_bos.demonstration(Prompt(0, "1"), "1+1").actions


def test_a_completion_ends_with_exactly_one_end(make_policy):
    """CHECKS 4: demonstrations end with the end of sequence, once, after the text's own tokens."""
    policy = make_policy("tiny-gpt2")
    tokens = policy.demonstration(Prompt(0, "1"), "12+7").actions
    assert tokens[-1] == policy.tokenizer.eos_token_id
    assert policy.tokenizer.decode(tokens[:-1]) == "12+7"
    policy.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        policy.demonstration(Prompt(0, "1"), "12+7")


def test_a_chat_goes_through_the_models_template(make_policy):
    policy = make_policy("tiny-llama")
    assert policy.tokenizer.decode(policy.encode(Prompt(0, CHAT)).tokens) == "u:1+1\na:"
    assert policy.tokenizer.decode(policy.encode(Prompt(0, "1+1")).tokens) == "1+1"


def test_prompts_that_cannot_be_encoded_are_named(make_policy):
    policy = make_policy("tiny-llama")
    with pytest.raises(DataError, match="prompt 7 has no tokens"):
        policy.encode(Prompt(7, ""))
    policy.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"prompt 8 .*chat template.*no system role"):
        policy.encode(Prompt(8, CHAT))
    policy.tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match=r"prompt 9 .*chat template"):
        policy.encode(Prompt(9, CHAT))
    policy.tokenizer.chat_template = None
    with pytest.raises(DataError, match="prompt 10 is a chat but the model has no chat template"):
        policy.encode(Prompt(10, CHAT))


def test_every_end_of_sequence_counts(make_policy):
    """CHECKS 6: the generation config's ids, one or several, and the tokenizer's."""
    policy = make_policy("tiny-llama")
    for configured, expected in ((None, {1}), (7, {1, 7}), ([7, 8], {1, 7, 8})):
        policy.model.generation_config.eos_token_id = configured
        assert policy.eos_ids == expected


def test_freezing_by_pattern(make_policy, sampling):
    policy = make_policy("tiny-llama", critic="head", freeze=["model.embed_tokens.*", "*.layers.0.*"])
    frozen = {name for name, p in policy.model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in policy.model.named_parameters() if "embed_tokens" in name or ".layers.0." in name
    }
    optimizer = torch.optim.SGD([p for p in policy.module.parameters() if p.requires_grad], lr=1.0)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    policy.score(one_row(policy), sampling=sampling()).logprobs.sum().backward()
    optimizer.step()
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
    total = sum(p.numel() for p in policy.model.parameters())
    assert policy.freeze(["*proj*"]) == total - 3 * 64  # the last layer's two norms and the final one still train
    assert policy.module.value_head.linear.weight.requires_grad
    with pytest.raises(ModelError, match="leave nothing of the model to train"):
        policy.freeze(["*"])
    with pytest.raises(ModelError, match=r"freeze pattern 'layers\.9\*' matches no parameter, such as 'model\."):
        policy.freeze(["layers.9*"])


def test_frozen_layers_under_gradient_checkpointing(make_policy, sampling):
    """Gradients of what still trains are those without recomputation, when the first layers are frozen."""
    gradients = []
    for checkpoint in (False, True):
        policy = make_policy("tiny-gpt2", freeze=["transformer.w?e.*", "transformer.h.0.*"], checkpoint=checkpoint)
        policy.score(one_row(policy), sampling=sampling()).logprobs.sum().backward()
        gradients.append({n: p.grad for n, p in policy.model.named_parameters() if p.requires_grad})
    assert len(gradients[0]) > 10
    for name, expected in gradients[0].items():
        assert expected.abs().max() > 0
        assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_trains_lora(make_policy, sampling):
    """Adapters under recomputation get the gradients that they get without."""
    gradients = []
    for checkpoint in (False, True):
        policy = make_policy("tiny-llama", lora={"r": 2, "target_modules": "all-linear"}, checkpoint=checkpoint)
        policy.score(one_row(policy), sampling=sampling()).logprobs.sum().backward()
        gradients.append({n: p.grad for n, p in policy.module.named_parameters() if p.requires_grad})
    assert all("lora" in name for name in gradients[0])
    assert max(g.abs().max() for g in gradients[0].values()) > 1e-4
    for name, expected in gradients[0].items():
        assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-7)


def test_lora_that_finds_nothing_to_adapt_is_a_model_error(make_policy):
    with pytest.raises(ModelError, match="nowhere_proj"):
        make_policy("tiny-llama", lora={"r": 2, "target_modules": ("nowhere_proj",)})


def test_value_head_starts_at_zero_and_ignores_scale():
    """V = w . h / rms(h) + b, in float32 whatever the trunk's dtype."""
    head = ValueHead(8)
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert_close(head(hidden), torch.zeros(5))
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.constant_(head.linear.bias, 0.3)
    expected = (hidden / hidden.square().mean(1, keepdim=True).sqrt()) @ head.linear.weight[0] + 0.3
    assert_close(head(hidden), expected, rtol=1e-5, atol=1e-5)
    assert_close(head(hidden * 1000), expected, rtol=1e-5, atol=1e-5)
    assert head(hidden.bfloat16()).dtype == torch.float32


def test_separate_critic_shares_no_weights_and_no_gradient(make_policy, sampling):
    policy = make_policy("tiny-llama", critic="separate")
    torch.nn.init.normal_(policy.module.value_head.linear.weight)
    policy.score(one_row(policy), sampling=sampling(), values=True).values.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.module.critic.parameters())
    assert not {p.data_ptr() for p in policy.model.parameters()} & {
        p.data_ptr() for p in policy.module.critic.parameters()
    }


def test_values_of_a_separate_critic_under_lora_still_read_the_base_trunk(make_policy, sampling):
    """At the start adapters change nothing, so the critic's trunk gives the plain model's hidden states."""
    plain = make_policy("tiny-llama", critic="separate")
    adapted = make_policy("tiny-llama", critic="separate", lora={"r": 2, "target_modules": "all-linear"})
    for policy in (plain, adapted):
        torch.nn.init.ones_(policy.module.value_head.linear.weight)
    read = [policy.score(one_row(policy), sampling=sampling(), values=True).values for policy in (plain, adapted)]
    assert_close(read[1], read[0], rtol=0, atol=1e-5)


def test_seed_decides_tiny_weights(make_policy):
    state = torch.get_rng_state()
    first, same, other = (make_policy("tiny-gpt2", seed=seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_character_tokenizer_survives_a_round_trip():
    tokenizer = character_tokenizer()
    text = "Sum: 12 + 7 = 19!\n(ok?) {x}~"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]
