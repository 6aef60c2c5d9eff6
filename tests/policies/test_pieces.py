"""The text of tokens one by one: nothing is lost or doubled where characters are cut or spaces belong to words."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from upslope.policies.text import pieces
from upslope.policies.tiny import character_tokenizer


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token a byte, as byte-level BPE has where it knows no longer piece."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    "text", ["plain words", "naïve café", "日本語 and 漢字", "🙂 ok", " leading and trailing ", ""]
)
def test_joined_they_are_the_text_and_each_character_lies_where_it_is_complete(bytes_tokenizer, text):
    ids = bytes_tokenizer(text)["input_ids"] if text else []
    found = pieces(bytes_tokenizer, ids)
    expected = [part for character in text for part in [""] * (len(character.encode()) - 1) + [character]]
    assert found == expected


def test_bytes_that_are_no_character_are_shown_as_such(bytes_tokenizer):
    ids = bytes_tokenizer("é")["input_ids"]
    found = pieces(bytes_tokenizer, [ids[0]] * 9)
    assert len(found) == 9
    assert set("".join(found)) == {"\ufffd"}


def test_special_tokens_are_shown():
    tokenizer = character_tokenizer()
    assert pieces(tokenizer, [*tokenizer("hi")["input_ids"], tokenizer.eos_token_id]) == ["h", "i", "<eos>"]


def test_spaces_belong_to_their_words(data_folder):
    """A sentencepiece tokenizer drops the space of a first token, which these are not."""
    tokenizer = AutoTokenizer.from_pretrained(Path(data_folder) / "models" / "stories260k")
    ids = tokenizer("a day, once upon a time", add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids[1:])
    assert "".join(found) == " day, once upon a time"
    assert any(piece.startswith(" ") for piece in found)
