"""Reward policies: what they read, where a decoder is read, and that plain Transformers gives the same scores."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from upslope.errors import ModelError
from upslope.policies.tiny import tiny_model
from upslope.records import Prompt, collate

CHAT = ({"role": "user", "content": "2 + 2?"},)
CASES = [("once upon", " a time"), (CHAT, "four, I think"), ("x", ""), ("say <eos>", "no")]


@pytest.fixture(params=["tiny-llama", "tiny-gpt2", "tiny-bert"])
def policy(request, make_policy):
    return make_policy(request.param, kind="reward", labels=("reward",))


def scores_of(policy, rows):
    with torch.no_grad():
        return policy.scores(collate(rows)[0])


def test_plain_transformers_gives_the_same_scores_of_a_saved_model(policy, tmp_path):
    """CHECKS 2, 3, 13: texts as the documentation says, padded together on the right; and each row alone."""
    rows = [policy.demonstration(Prompt(i, content), text) for i, (content, text) in enumerate(CASES)]
    found = scores_of(policy, rows)
    assert len({round(score, 4) for score in found.tolist()}) == len(CASES)
    assert_close(torch.cat([scores_of(policy, [row]) for row in rows]), found, rtol=0, atol=1e-5)
    policy.save(tmp_path)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert model.config.num_labels == 1
    decoder = hasattr(model, "score")
    texts = []
    for content, text in CASES:
        if not isinstance(content, str):
            texts.append(
                tokenizer.apply_chat_template([*content, {"role": "assistant", "content": text}], return_dict=False)
            )
        elif decoder:
            ids = tokenizer(content + text)["input_ids"]
            texts.append(ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id])
        else:
            texts.append(tokenizer(content, text)["input_ids"])
    assert [list(row.tokens) for row in rows] == texts
    padded = tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        theirs = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0]
    assert_close(theirs, found, rtol=0, atol=1e-5)


def causal_folder(path, *, pad):
    """A causal model as its makers would save it, with this padding token."""
    torch.manual_seed(0)
    model, tokenizer = tiny_model("tiny-llama")
    tokenizer.pad_token = pad
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("pad", ["<eos>", "<pad>"])
def test_a_new_head_gets_a_padding_token_that_no_text_ends_in(make_policy, tmp_path, pad):
    """CHECKS 5, 13: with pad == EOS Transformers would read the token before the end; the trunk is the model's own."""
    source = causal_folder(tmp_path / "causal", pad=pad)
    policy = make_policy(source, kind="reward", labels=("reward",))
    end = policy.tokenizer.eos_token_id
    assert policy.tokenizer.pad_token_id not in (None, end)
    assert policy.model.config.pad_token_id == policy.tokenizer.pad_token_id
    row = policy.demonstration(Prompt(0, "say"), " sea")
    assert row.tokens[-1] == end
    trunk = AutoModelForCausalLM.from_pretrained(source).model
    with torch.no_grad():
        last = trunk(torch.tensor([row.tokens])).last_hidden_state[:, -1]
        assert_close(scores_of(policy, [row]), policy.model.score(last)[:, 0], rtol=0, atol=1e-5)
    policy.save(tmp_path / "saved")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    longer = policy.demonstration(Prompt(0, "say"), " sea and sky")
    ids = torch.full((2, len(longer.tokens)), model.config.pad_token_id)
    ids[0, : len(row.tokens)], ids[1] = torch.tensor(row.tokens), torch.tensor(longer.tokens)
    with torch.no_grad():
        for side in (ids, torch.stack([ids[0].roll(len(longer.tokens) - len(row.tokens)), ids[1]])):  # right, left
            theirs = model(side, attention_mask=(side != model.config.pad_token_id).long()).logits[:, 0]
            assert_close(theirs, scores_of(policy, [row, longer]), rtol=0, atol=1e-5)


def test_a_head_that_was_trained_with_padding_at_its_end_is_read_as_it_was(make_policy, tmp_path):
    """A published reward model with pad == EOS: Transformers reads before the end, so that is what its scores are."""
    policy = make_policy("tiny-llama", kind="reward", labels=("reward",))
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    policy.model.config.pad_token_id = policy.tokenizer.eos_token_id
    policy.save(tmp_path)
    loaded = make_policy(tmp_path, kind="reward", labels=("reward",))
    row = loaded.demonstration(Prompt(0, "say"), " sea")
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    with torch.no_grad():
        theirs = model(**tokenizer("say sea<eos>", return_tensors="pt", return_token_type_ids=False)).logits[:, 0]
    assert_close(scores_of(loaded, [row]), theirs, rtol=0, atol=1e-5)


def test_a_model_of_several_labels_is_no_reward_model(make_policy, tmp_path):
    make_policy("tiny-bert", kind="classifier", labels=("bad", "good")).save(tmp_path)
    with pytest.raises(ModelError, match="gives 2 scores to a text, but a reward model gives one"):
        make_policy(tmp_path, kind="reward", labels=("reward",))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_token_by_token_the_head_is_read_at_every_token_of_the_completion_and_its_end(make_policy, tmp_path, name):
    """The sum over them, with the offset each time, by plain forwards; as saved and loaded, of a causal policy's own
    rows as well; a row alone or padded."""
    policy = make_policy(name, kind="reward", labels=("reward",))
    policy.judge_tokens()
    policy.offset.fill_(-0.7)
    policy.save(tmp_path)
    loaded = make_policy(tmp_path, kind="reward", labels=("reward",))
    writer = make_policy(name)
    texts = [("say", " sea"), ("say", ""), ("once upon", " a time")]
    rows = [loaded.demonstration(Prompt(i, content), text) for i, (content, text) in enumerate(texts)]
    found = scores_of(loaded, rows)
    for (content, text), row, score in zip(texts, rows, found, strict=True):
        before = policy.tokenizer(content)["input_ids"]
        ids = [*before, *policy.tokenizer(text, add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id]
        assert list(row.tokens) == ids
        with torch.no_grad():
            states = policy.model.base_model(torch.tensor([ids])).last_hidden_state[0, len(before) :]
            expected = (policy.model.score(states)[:, 0] - 0.7).sum()
        assert_close(score, expected, rtol=0, atol=1e-5)
        if text:
            own = loaded.written(writer.demonstration(Prompt(0, content), text))
            assert_close(scores_of(loaded, [own])[0], expected, rtol=0, atol=1e-5)


def test_an_encoder_judges_no_tokens(make_policy):
    with pytest.raises(ModelError, match="is no decoder"):
        make_policy("tiny-bert", kind="reward", labels=("reward",)).judge_tokens()
