"""Beam search against Transformers' own and against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from upslope.engines.local import LocalEngine
from upslope.errors import ModelError
from upslope.policies.causal import CausalPolicy
from upslope.policies.seq2seq import Seq2SeqPolicy
from upslope.policies.tiny import character_tokenizer, tiny_model
from upslope.records import Prompt, collate
from upslope.search.beam import BeamEngine

TEXTS = [f"{word} {number}" for number, word in enumerate(["tell", "a story", "x", "what is", "12+7="] * 4)]
SETTINGS = [
    {"width": 1, "length_penalty": 1.0, "early_stopping": False},
    {"width": 2, "length_penalty": 1.0, "early_stopping": True},
    {"width": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"width": 4, "length_penalty": 2.0, "early_stopping": "never"},
    {"width": 4, "length_penalty": -1.0, "early_stopping": False},
    {"width": 5, "length_penalty": 0.6, "early_stopping": False},
]
MODELS = {
    "tiny-llama": (CausalPolicy, AutoModelForCausalLM, 4.0),
    "tiny-gpt2": (CausalPolicy, AutoModelForCausalLM, 4.0),
    "tiny-t5": (Seq2SeqPolicy, AutoModelForSeq2SeqLM, 1.5),
    "tiny-bart": (Seq2SeqPolicy, AutoModelForSeq2SeqLM, 4.0),
}


def tiny_policy(name, **config):
    """Weights sharp enough to prefer something; texts end early, by any of several ends."""
    kind, auto, factor = MODELS[name]
    torch.manual_seed(0)
    policy = kind(*tiny_model(name, auto=auto, **config))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    policy.tokenizer.eos_token = policy.tokenizer.convert_ids_to_tokens(7)
    policy.model.generation_config.eos_token_id = [7, 20, 33, 41, 60, 77, 90]
    return policy


def theirs(policy, prompt, *, width, length_penalty, early_stopping, max_new_tokens, num_best):
    """(actions, score) of the best texts by Transformers' generate, alone on one prompt."""
    source = torch.tensor([prompt.tokens])
    start = 0 if isinstance(policy, CausalPolicy) else 1
    sequences = policy.model.generate(
        source,
        attention_mask=torch.ones_like(source),
        do_sample=False,
        num_beams=width,
        num_return_sequences=num_best,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=policy.pad_id,
    )
    first = start or source.shape[1]
    scores = [None] * num_best if width == 1 else sequences.sequences_scores.tolist()
    texts = []
    for row in sequences.sequences[:, first:].tolist():
        end = next((i for i, token in enumerate(row) if token in policy.eos_ids), len(row) - 1)
        texts.append(tuple(row[: end + 1]))
    return list(zip(texts, scores, strict=True))


def assert_equal(policy, settings, sampling, *, texts, max_new_tokens):
    """All prompts at once give, token for token, what Transformers gives on each alone."""
    prompts = [policy.encode(Prompt(i, text)) for i, text in enumerate(texts)]
    num_best = settings["width"]
    engine = BeamEngine(**settings, max_rows=32)
    engine.load(policy, version=5)
    setting = sampling(max_new_tokens=max_new_tokens)
    rollouts = engine.sample(prompts, group_size=num_best, sampling=setting, seed=0)
    for group, prompt in enumerate(prompts):
        ours = [rollout for rollout in rollouts if rollout.group == group]
        expected = theirs(policy, prompt, **settings, max_new_tokens=max_new_tokens, num_best=num_best)
        assert [r.actions for r in ours] == [actions for actions, _ in expected]
        for rollout, (_, score) in zip(ours, expected, strict=True):
            assert score is None or rollout.metrics["beam_score"] == pytest.approx(score, abs=1e-4)
    return rollouts


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(value) for value in s.values()))
@pytest.mark.parametrize("name", MODELS)
def test_texts_are_those_of_transformers(name, settings, sampling):
    """Twenty prompts, all the beams of each in order; log-probabilities are the policy's own."""
    policy = tiny_policy(name)
    rollouts = assert_equal(policy, settings, sampling, texts=TEXTS, max_new_tokens=12)
    assert {r.version for r in rollouts} == {5}
    assert {r.stop_reason for r in rollouts} <= {"eos", "length"}
    if settings["width"] > 2:
        assert len({r.actions for r in rollouts}) >= 10
    if settings["width"] > 2 and settings["length_penalty"] <= 1.0:
        assert {r.stop_reason for r in rollouts} == {"eos", "length"}
    batch, _ = collate(rollouts)
    with torch.no_grad():
        scored = policy.score(batch, sampling=sampling()).logprobs
    torch.testing.assert_close(batch.engine_logprobs, scored, rtol=0, atol=2e-5)
    for rollout in rollouts:
        score = sum(rollout.engine_logprobs) / len(rollout.actions) ** settings["length_penalty"]
        assert rollout.metrics["beam_score"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("settings", SETTINGS[2:4], ids=lambda s: "-".join(str(value) for value in s.values()))
def test_texts_of_a_real_model_are_those_of_transformers(data_folder, make_policy, sampling, settings):
    """stories260k, twenty beginnings of stories."""
    policy = make_policy(data_folder / "models" / "stories260k")
    texts = [
        f"{start} {thing}" for start in ("Once there was", "One day", "The", "Tom saw", "It was") for thing in "abcd"
    ]
    assert_equal(policy, settings, sampling, texts=texts, max_new_tokens=20)


def test_more_beams_find_no_worse_texts(sampling):
    """One beam is greedy decoding; the best of many is likelier than that, on the mean over twenty prompts."""
    policy = tiny_policy("tiny-llama")
    prompts = [policy.encode(Prompt(i, text)) for i, text in enumerate(TEXTS)]
    greedy = LocalEngine(max_rows=64, cache_gib=0.1, kernels="torch")
    greedy.load(policy, version=0)
    expected = greedy.sample(prompts, group_size=1, sampling=sampling(0.0), seed=0)
    means = []
    for width in (1, 8):
        engine = BeamEngine(width=width, length_penalty=0.0, early_stopping="never")
        engine.load(policy, version=0)
        found = engine.sample(prompts, group_size=1, sampling=sampling(0.0), seed=0)
        if width == 1:
            assert [r.actions for r in found] == [r.actions for r in expected]
        means.append(sum(sum(r.engine_logprobs) for r in found) / len(found))
    assert means[1] > means[0] + 0.1


SMALL = {"vocab_size": 5, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}


def small_policy(kind):
    """A model over five tokens: every text of four tokens can be listed."""
    torch.manual_seed(1)
    tokenizer = character_tokenizer()
    if kind == "causal":
        config = LlamaConfig(**SMALL, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        policy = CausalPolicy(LlamaForCausalLM(config).eval(), tokenizer)
    elif kind == "t5":
        config = T5Config(**SMALL, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
        policy = Seq2SeqPolicy(T5ForConditionalGeneration(config).eval(), tokenizer)
    else:
        config = BartConfig(
            **SMALL, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
            decoder_start_token_id=1,
            forced_bos_token_id=None, forced_eos_token_id=None,
        )  # fmt: skip
        policy = Seq2SeqPolicy(BartForConditionalGeneration(config).eval(), tokenizer)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(8.0)
    policy.module.double()
    return policy


def every_text(policy, prompt, length):
    """(log p, actions) of every text of at most so many tokens that ends or is full, one plain forward a text."""
    source = torch.tensor([prompt.tokens])
    for count in range(1, length + 1):
        for actions in itertools.product(range(5), repeat=count):
            if 1 in actions[:-1] or (count < length and actions[-1] != 1):
                continue
            if isinstance(policy, CausalPolicy):
                logits = policy.model(torch.cat([source, torch.tensor([actions])], 1)).logits[
                    0, source.shape[1] - 1 : -1
                ]
            else:
                read = torch.tensor([[*policy.start, *actions]])
                logits = policy.model(input_ids=source, decoder_input_ids=read).logits[0, len(policy.start) - 1 : -1]
            yield float(logits.double().log_softmax(1)[range(count), actions].sum()), actions


@pytest.mark.parametrize("kind", ["causal", "t5", "bart"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
def test_exhaustive_width_finds_the_best_of_all_texts(kind, length_penalty, sampling):
    """With as many beams as there are texts the order is that of brute force, over all 341 of up to four tokens."""
    policy = small_policy(kind)
    prompt = Prompt(0, "x", tokens=(3, 4, 2))
    with torch.no_grad():
        texts = [
            (logprob / len(actions) ** length_penalty, actions) for logprob, actions in every_text(policy, prompt, 4)
        ]
    assert len(texts) == 1 + 4 + 16 + 64 * 5
    if length_penalty == 0.0:
        assert sum(math.exp(score) for score, _ in texts) == pytest.approx(1.0)
    texts.sort(reverse=True)
    engine = BeamEngine(width=625, length_penalty=length_penalty, early_stopping="never", max_rows=1000)
    engine.load(policy, version=0)
    found = engine.sample([prompt], group_size=50, sampling=sampling(max_new_tokens=4), seed=0)
    score_of = {actions: score for score, actions in texts}
    assert len({r.actions for r in found}) == 50
    for rollout, (score, _) in zip(found, texts, strict=False):
        assert rollout.metrics["beam_score"] == pytest.approx(score, abs=1e-5)
        assert score_of[rollout.actions] == pytest.approx(score, abs=1e-5)  # equals may change places
    assert texts[0][0] > texts[1][0] + 1e-4
    assert found[0].actions == texts[0][1]
    greedy = BeamEngine(width=1, length_penalty=length_penalty)
    greedy.load(policy, version=0)
    (first,) = greedy.sample([prompt], group_size=1, sampling=sampling(max_new_tokens=4), seed=0)
    assert first.metrics["beam_score"] <= found[0].metrics["beam_score"]


def test_fewer_texts_than_beams(sampling):
    """Where the vocabulary allows only five texts of one token, so many come back."""
    engine = BeamEngine(width=20)
    engine.load(small_policy("causal"), version=0)
    found = engine.sample([Prompt(0, "x", tokens=(2,))], group_size=20, sampling=sampling(max_new_tokens=1), seed=0)
    assert sorted(r.actions for r in found) == [(token,) for token in range(5)]
    assert [r.sample for r in found] == list(range(5))


def test_a_stop_string_ends_a_beam(sampling):
    policy = tiny_policy("tiny-llama")
    engine = BeamEngine(width=3)
    engine.load(policy, version=0)
    prompts = [policy.encode(Prompt(i, text)) for i, text in enumerate(TEXTS)]
    (longest, *_) = sorted(
        engine.sample(prompts, group_size=1, sampling=sampling(), seed=0), key=lambda r: -len(r.text)
    )
    stop = longest.text[2:4]
    found = engine.sample(prompts, group_size=3, sampling=sampling(stop=(stop,)), seed=0)
    assert not any(stop in r.text for r in found)
    assert any(r.stop_reason == "stop" for r in found)


def test_prompts_do_not_see_each_other(sampling):
    """Searching them one at a time, or few rows at a time, gives the same texts."""
    for name in ("tiny-llama", "tiny-t5"):
        policy = tiny_policy(name)
        prompts = [policy.encode(Prompt(i, text)) for i, text in enumerate(TEXTS[:5])]
        found = []
        for max_rows in (1, 64):
            engine = BeamEngine(width=3, max_rows=max_rows)
            engine.load(policy, version=0)
            found.append(
                [
                    (r.group, r.sample, r.actions)
                    for r in engine.sample(prompts, group_size=3, sampling=sampling(), seed=0)
                ]
            )
        assert found[0] == found[1]


def test_impossible_requests_are_refused(make_policy, sampling):
    with pytest.raises(ModelError, match="policies that write, not for a ClassifierPolicy"):
        BeamEngine(width=2).load(make_policy("tiny-bert", kind="classifier", labels=("a", "b")), version=0)
    engine = BeamEngine(width=2)
    with pytest.raises(ModelError, match="load"):
        engine.sample([], group_size=1, sampling=sampling(), seed=0)
    policy = make_policy("tiny-llama")
    engine.load(policy, version=0)
    with pytest.raises(ModelError, match="3 texts are asked of 2 beams"):
        engine.sample([policy.encode(Prompt(0, "x"))], group_size=3, sampling=sampling(), seed=0)
    with pytest.raises(ModelError, match="context has room for"):
        engine.sample([policy.encode(Prompt(0, "x"))], group_size=1, sampling=sampling(max_new_tokens=300), seed=0)
    with pytest.raises(ModelError, match="every answer cannot be listed"):
        engine.every_answer([], sampling=sampling())
    assert engine.sample([], group_size=1, sampling=sampling(), seed=0) == []


def test_a_model_that_has_broken_down_says_so(sampling):
    policy = tiny_policy("tiny-llama")
    with torch.no_grad():
        next(policy.model.parameters())[:] = float("nan")
    engine = BeamEngine(width=2)
    engine.load(policy, version=0)
    found = engine.sample([policy.encode(Prompt(0, "x"))], group_size=2, sampling=sampling(), seed=0)
    assert {r.failure for r in found} == {"non-finite logits"}
