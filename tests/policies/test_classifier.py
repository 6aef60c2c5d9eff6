"""The classifier policy's own ways: where decoders are read, labels, texts that are too long."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from upslope.errors import DataError, ModelError
from upslope.policies.tiny import character_tokenizer
from upslope.records import Prompt, collate

LABELS = ("bad", "good", "none")


def rows_of(policy, texts):
    return [policy.blank(Prompt(id=i, content=text, tokens=tuple(tokens))) for i, (text, tokens) in enumerate(texts)]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_a_decoder_is_read_at_its_last_token_whatever_the_padding_is(make_policy, sampling, name):
    """CHECKS 13, transformers#35352: with pad == EOS, Transformers pools before an end of sequence that is part of the
    text; the policy reads the last token of each row, alone and in company."""
    policy = make_policy(name, kind="classifier", labels=LABELS)
    model, end = policy.model, policy.tokenizer.eos_token_id
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    model.config.pad_token_id = end
    rollouts = rows_of(policy, [("ended", (5, 9, 30, end)), ("longer", (7, 8, 9, 10, 11, 12)), ("open", (4, 5))])
    expected, theirs = [], []
    with torch.no_grad():
        for rollout in rollouts:
            ids = torch.tensor([rollout.tokens])
            expected.append(model.score(model.base_model(ids).last_hidden_state[:, -1]))
            theirs.append(model(ids, attention_mask=torch.ones_like(ids)).logits)
        found = policy.logits(collate(rollouts)[0])
    assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)
    assert (theirs[0] - expected[0]).abs().max() > 1e-3, "Transformers has mended its pooling: the note can go"
    assert_close(torch.cat(theirs[1:]), torch.cat(expected[1:]), rtol=0, atol=1e-5)


def test_a_head_that_reads_elsewhere_is_left_to_the_model(make_policy):
    """Only where the model's own logits are its `score` on the last token are they computed so."""
    assert make_policy("tiny-llama", kind="classifier", labels=LABELS)._reads_last
    bert = make_policy("tiny-bert", kind="classifier", labels=LABELS)
    assert not bert._reads_last
    bert.model.score = torch.nn.Linear(64, 3)
    assert not bert._probe()


def test_labels_stand_in_the_saved_model(make_policy, tmp_path):
    policy = make_policy("tiny-bert", kind="classifier", labels=LABELS)
    policy.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "none"}
    assert config["label2id"] == {"bad": 0, "good": 1, "none": 2}
    assert make_policy(tmp_path, kind="classifier").labels == LABELS
    assert make_policy(tmp_path, kind="classifier", labels=LABELS).labels == LABELS


@pytest.mark.parametrize("labels", [("good", "bad", "none"), ("bad", "good"), (*LABELS, "more")])
def test_a_model_trained_for_other_labels_is_refused(make_policy, tmp_path, labels):
    """Another order is refused as well: the actions would mean something else."""
    make_policy("tiny-bert", kind="classifier", labels=LABELS).save(tmp_path)
    with pytest.raises(ModelError, match=r"was trained to choose between \['bad', 'good', 'none'\], but the task has"):
        make_policy(tmp_path, kind="classifier", labels=labels)


def test_a_trunk_gets_a_new_head_by_seed_and_needs_labels(make_policy, tmp_path):
    """Weights of the trunk are the file's; the head is random by the seed; without labels there is none."""
    torch.manual_seed(3)
    config = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    trunk = BertModel(config)
    trunk.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    first, same, other = (make_policy(tmp_path, kind="classifier", labels=LABELS, seed=s) for s in (0, 0, 1))
    for name, weight in trunk.encoder.state_dict().items():
        assert torch.equal(first.model.bert.encoder.state_dict()[name], weight)
    assert torch.equal(first.model.classifier.weight, same.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    with pytest.raises(ModelError, match="has no head for labels, and the task names no labels"):
        make_policy(tmp_path, kind="classifier")


def test_labels_of_a_task_are_nothing_to_a_policy_that_writes(make_policy):
    assert make_policy("tiny-llama", labels=LABELS).model.config.num_labels == 2


def test_long_texts_are_cut_and_say_so(make_policy):
    """Special tokens stay when a text is cut."""
    policy = make_policy("tiny-bert", kind="classifier", labels=LABELS, max_length=5)
    prompt = Prompt(0, "abcdefgh")
    assert policy.cuts(prompt)
    assert policy.encode(prompt).tokens == tuple(policy.tokenizer("abcde")["input_ids"])
    assert not policy.cuts(Prompt(0, "abcde"))
    assert policy.room(prompt) is None
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        policy.encode(Prompt(0, ""))


def test_pretrained_encoder(minilm, make_policy, sampling, tmp_path):
    """minilm-l6 as a classifier: padded rows score as Transformers' own forward of each; saved, it loads as usual."""
    policy = make_policy("minilm-l6", kind="classifier", labels=LABELS, max_length=16)
    texts = ["good", "A film that I would not see again, not even for money, nor for love of the genre", "酒店 很好"]
    prompts = [policy.encode(Prompt(i, text)) for i, text in enumerate(texts)]
    special = (policy.tokenizer.cls_token_id, policy.tokenizer.sep_token_id)
    assert [(p.tokens[0], p.tokens[-1]) for p in prompts] == [special] * 3
    assert [len(p.tokens) for p in prompts] == [3, 16, 6]
    rows = [policy.filled(policy.blank(prompt), [i]) for i, prompt in enumerate(prompts)]
    policy.save(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        scores = policy.score(collate(rows)[0], sampling=sampling()).logprobs
        for i, text in enumerate(texts):
            encoded = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
            assert encoded["input_ids"][0].tolist() == list(prompts[i].tokens)
            assert_close(scores[i], model(**encoded).logits[0].log_softmax(0)[i], rtol=0, atol=1e-5)
