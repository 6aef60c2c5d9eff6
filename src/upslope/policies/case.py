"""Capital letters for uncased models: tokens of the vocabulary that nothing uses say where they stood."""

from __future__ import annotations

import json
from string import ascii_letters, ascii_uppercase
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from upslope.errors import ModelError

CAPITAL, CAPITALS = "\ue000", "\ue001"
"""Characters for private use, which BERT's own normalisation deletes from a text: no text can hold them."""


def marks_case(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this is a tokenizer that `mark_case` made."""
    return all(mark in tokenizer.get_vocab() for mark in (CAPITAL, CAPITALS))


def mark_case(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with a token before every word that began with a capital ("Rome"), and another before one that went
    on with a second ("EU"), in the places of two unused tokens: an uncased model reads those as parts of the word.

    All of it is in the tokenizer's own file, so what was trained with it loads by plain Transformers. ASCII letters
    only, once accents are gone. Raises: ModelError where the tokenizer is none of an uncased BERT, or has no unused
    tokens.
    """
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, normalizer = backend["model"]["type"], backend["normalizer"] or {}
    vocabulary: dict[str, int] = backend["model"]["vocab"] if kind == "WordPiece" else {}
    unused = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if token.startswith("[unused")][:2]
    if len(unused) < 2 or normalizer.get("type") != "BertNormalizer" or not normalizer.get("lowercase"):
        raise ModelError(
            "model.mark_case is for uncased WordPiece models with unused tokens, such as minilm-l6; this model's "
            "tokenizer is none, or keeps capitals by itself"
        )
    for token, mark in zip(unused, (CAPITAL, CAPITALS), strict=True):
        vocabulary[mark] = vocabulary.pop(token)
    marked = Tokenizer.from_str(json.dumps(backend))
    marked.normalizer = _marking(normalizer)
    marked.no_padding()
    marked.no_truncation()
    return PreTrainedTokenizerFast(
        tokenizer_object=marked, model_max_length=tokenizer.model_max_length, **tokenizer.special_tokens_map
    )


def _marking(settings: dict[str, Any]) -> normalizers.Normalizer:
    """BERT's normalisation with marks between the stripping of accents and the loss of case.

    A rule a letter: what replaces a letter takes its place in the text, so a mark lies within its word.
    """
    clean = {name: settings[name] for name in ("clean_text", "handle_chinese_chars")}
    letter = f"(?<![{ascii_letters}])"
    marks = [
        normalizers.Replace(Regex(f"{letter}{capital}{follows}"), f"{mark} {capital.lower()}")
        for mark, follows in ((CAPITALS, "(?=[A-Z])"), (CAPITAL, ""))
        for capital in ascii_uppercase
    ]
    cased = normalizers.BertNormalizer(lowercase=False, strip_accents=True, **clean)
    return normalizers.Sequence([cased, *marks, normalizers.Lowercase()])
