"""The encoder-decoder policy's own ways: where the decoder starts, heads that scale or shift, demonstrations."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from upslope.engines.local import LocalEngine
from upslope.errors import DataError, ModelError
from upslope.policies.seq2seq import Seq2SeqPolicy
from upslope.policies.tiny import tiny_model
from upslope.records import Prompt, collate


def policy_of(name, *, factor=1.5, forced=None, **config):
    torch.manual_seed(0)
    model, tokenizer = tiny_model(name, auto=AutoModelForSeq2SeqLM, **config)
    model.generation_config.forced_bos_token_id = forced
    policy = Seq2SeqPolicy(model, tokenizer)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return policy


def rows_of(policy, texts):
    return [
        policy.row(policy.encode(Prompt(i, source)), actions, [0.0] * len(actions), text="", stop_reason="eos")
        for i, (source, actions) in enumerate(texts)
    ]


def own_logits(policy, rollout):
    with torch.no_grad():
        output = policy.model(
            input_ids=torch.tensor([rollout.source]), decoder_input_ids=torch.tensor([rollout.tokens])
        )
    return output.logits[0, list(rollout.positions)]


def scored(policy, rollouts, sampling):
    with torch.no_grad():
        return torch.cat(list(policy.distributions(collate(rollouts)[0])))


TEXTS = [("abc", (5, 9, 12)), ("a longer source", (7, 1)), ("x", (30, 31, 32, 33, 1))]


@pytest.mark.parametrize(
    "config", [{}, {"tie_word_embeddings": False}, {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}]
)
def test_t5_scales_before_its_head_where_it_is_tied(config, sampling):
    """T5 divides the decoder's states by sqrt(d) before a tied head and not before its own: as the model does."""
    policy = policy_of("tiny-t5", **config)
    rollouts = rows_of(policy, TEXTS)
    found = scored(policy, rollouts, sampling)
    assert_close(found, torch.cat([own_logits(policy, rollout) for rollout in rollouts]), rtol=1e-5, atol=1e-4)
    assert found.std() > 0.3


def test_barts_bias_on_its_logits_counts(sampling):
    policy = policy_of("tiny-bart", factor=4.0)
    rollouts = rows_of(policy, TEXTS)
    before = scored(policy, rollouts, sampling)
    policy.model.final_logits_bias += torch.linspace(-3, 3, policy.model.final_logits_bias.shape[1])
    after = scored(policy, rollouts, sampling)
    assert_close(after - before, policy.model.final_logits_bias.expand_as(after), rtol=0, atol=1e-5)
    assert_close(after, torch.cat([own_logits(policy, rollout) for rollout in rollouts]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-bart"])
def test_greedy_texts_are_those_of_transformers(name, sampling):
    """Twenty sources of several lengths in one batch, as Transformers' generate writes each alone."""
    policy = policy_of(name, factor=2.0)
    engine = LocalEngine(max_rows=64, cache_gib=0.1, kernels="torch")
    engine.load(policy, version=0)
    prompts = [policy.encode(Prompt(i, "abcdefghijklmnopqrstuvwxyz"[i : i + 1 + i % 7])) for i in range(20)]
    for rollout in engine.sample(prompts, group_size=1, sampling=sampling(0.0, max_new_tokens=10), seed=0):
        source = torch.tensor([rollout.source])
        theirs = policy.model.generate(
            source, attention_mask=torch.ones_like(source), do_sample=False, max_new_tokens=10
        )
        assert rollout.tokens == tuple(theirs[0].tolist())
        assert rollout.source == rollout.prompt.tokens


def test_forced_first_tokens_are_no_actions(sampling):
    """With forced_bos_token_id the decoder's stream begins with start and forced token; the actions come after."""
    policy = policy_of("tiny-bart", factor=4.0, forced=5)
    assert policy.start == (1, 5)
    assert policy.room(Prompt(0, "x")) == 254
    engine = LocalEngine(max_rows=64, cache_gib=0.1, kernels="torch")
    engine.load(policy, version=0)
    prompts = [policy.encode(Prompt(i, text)) for i, (text, _) in enumerate(TEXTS)]
    rollouts = engine.sample(prompts, group_size=3, sampling=sampling(), seed=0)
    for rollout in rollouts:
        assert rollout.tokens == (1, 5, *rollout.actions)
        assert rollout.positions == tuple(range(1, 1 + len(rollout.actions)))
        expected = own_logits(policy, rollout).log_softmax(1)[range(len(rollout.actions)), rollout.actions]
        assert_close(torch.tensor(rollout.engine_logprobs), expected, rtol=0, atol=2e-5)
    batch, _ = collate(rollouts)
    with torch.no_grad():
        assert_close(policy.score(batch, sampling=sampling()).logprobs, batch.engine_logprobs, rtol=0, atol=2e-5)
    for rollout in engine.sample(prompts, group_size=1, sampling=sampling(0.0, max_new_tokens=6), seed=0):
        source = torch.tensor([rollout.source])
        theirs = policy.model.generate(
            source, attention_mask=torch.ones_like(source), do_sample=False, max_new_tokens=7
        )
        assert rollout.tokens == tuple(theirs[0].tolist())


def test_a_demonstration_is_what_the_decoder_writes():
    """CHECKS 4: one end, the forced first token left out where the tokenizer writes it, the source beside it."""
    policy = policy_of("tiny-bart", forced=5)
    plain = policy.demonstration(Prompt(0, "source"), "ab")
    ids = policy.tokenizer("ab")["input_ids"]
    assert plain.actions == (*ids, 1)
    assert plain.tokens == (1, 5, *ids, 1)
    assert plain.source == tuple(policy.tokenizer("source")["input_ids"])
    token = policy.tokenizer.convert_ids_to_tokens(5)
    policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A <eos>", special_tokens=[(token, 5), ("<eos>", 1)]
    )
    assert policy.tokenizer("ab")["input_ids"] == [5, *ids, 1]
    marked = policy.demonstration(Prompt(0, "source"), "ab")
    assert (marked.actions, marked.tokens) == (plain.actions, plain.tokens)


def test_unusable_rows_are_refused():
    policy = policy_of("tiny-bart")
    with pytest.raises(DataError, match="prompt 3 has no tokens to read"):
        policy.encode(Prompt(3, ""))
    with pytest.raises(DataError, match="prompt 3 has 300 tokens, which exceeds the 256 that the model reads"):
        policy.encode(Prompt(3, "x" * 300))
    with pytest.raises(DataError, match="no text to learn from"):
        policy.demonstration(Prompt(3, "x"), "")
    with pytest.raises(DataError, match=r"completion of prompt 3 has 301 tokens, which exceeds the 255 that"):
        policy.demonstration(Prompt(3, "x"), "y" * 300)
    policy.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        policy.demonstration(Prompt(3, "x"), "y")


def test_models_that_are_no_encoder_decoders_are_refused():
    with pytest.raises(ModelError, match="LlamaForCausalLM is no encoder-decoder"):
        Seq2SeqPolicy(*tiny_model("tiny-llama", auto=AutoModelForCausalLM))
    model, tokenizer = tiny_model("tiny-t5", auto=AutoModelForSeq2SeqLM)
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="names no decoder_start_token_id to begin with"):
        Seq2SeqPolicy(model, tokenizer)
