"""Capitals marked for an uncased model: where marks stand, that plain Transformers reads them, who is refused."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerFast

from upslope.errors import ModelError
from upslope.policies.case import CAPITAL, CAPITALS, mark_case, marks_case
from upslope.policies.tiny import character_tokenizer
from upslope.records import Prompt, collate

C, CS = CAPITAL, CAPITALS
PIECES = ("[PAD]", "[unused0]", "[unused1]", "[UNK]", "eu", "rejects", "german", "##s", "ecole", "mc", "##donald", "u")
SINGLE = ("s", ".", "-", "i", "x", "北", "京", "ac", "milan")


@pytest.fixture
def uncased():
    """BERT's normalisation and WordPiece over a few words."""
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES + SINGLE)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("EU rejects Germans", [CS, "eu", "rejects", C, "german", "##s"]),
        ("École i I", [C, "ecole", "i", C, "i"]),
        ("McDonald U.S.", [C, "mc", "##donald", C, "u", ".", C, "s", "."]),
        ("AC-Milan eU", [CS, "ac", "-", C, "milan", "eu"]),
        ("北京 x", ["北", "京", "x"]),
        (f"x{C} {CS}eu", ["x", "eu"]),  # what a text brings of the marks' own characters is deleted
    ],
)
def test_a_mark_stands_before_each_word_with_a_capital(uncased, text, tokens):
    marked = mark_case(uncased)
    assert marked.tokenize(text) == tokens
    assert [token for token in tokens if token not in (C, CS)] == uncased.tokenize(text.replace(C, "").replace(CS, ""))


def test_all_of_it_is_in_the_tokenizer_file(uncased, tmp_path):
    """Saved, AutoTokenizer reads the same ids; marks have the ids of the unused tokens; the original is as it was."""
    marked = mark_case(uncased)
    marked.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("EU Germans")["input_ids"] == marked("EU Germans")["input_ids"] == [2, 4, 1, 6, 7]
    assert len(loaded) == len(uncased)
    assert [marks_case(each) for each in (uncased, marked, loaded)] == [False, True, True]


def test_other_tokenizers_are_refused(uncased):
    backend = uncased.backend_tokenizer
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    for tokenizer in (character_tokenizer(), uncased):
        with pytest.raises(ModelError, match="mark_case is for uncased WordPiece models"):
            mark_case(tokenizer)


def test_a_tagger_decides_at_the_mark_as_plain_transformers_does(minilm, make_policy, tmp_path):
    """Its saved folder, read by Auto classes at each word's first piece by `word_ids`, gives the same tags."""
    words = ["EU", "rejects", "German", "U.S.", "calls", "Müller", "unbelievability"]
    policy = make_policy("minilm-l6", kind="tagger", labels=("NOUN", "VERB", "NAME"), mark_case=True)
    prompt = policy.encode(Prompt(0, "x", columns={"words": words}))
    policy.save(tmp_path)
    again = make_policy(tmp_path, kind="tagger", mark_case=True)
    assert again.encode(prompt).tokens == prompt.tokens
    model, tokenizer = (
        AutoModelForTokenClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    first = [encoded.word_ids().index(place) for place in range(len(words))]
    assert tuple(first) == policy.positions(prompt)
    assert tuple(encoded["input_ids"][0].tolist()) == prompt.tokens
    with torch.no_grad():
        torch.testing.assert_close(
            policy.logits(collate([policy.blank(prompt)])[0]), model(**encoded).logits[0, first], rtol=0, atol=1e-5
        )
