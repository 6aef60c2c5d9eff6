"""How much of the references' text a completion has: BLEU, chrF and TER by sacrebleu, ROUGE by rouge-score.

The factories return row functions whose column holds one reference or a list of several. The corpus functions are for
reports: a corpus's BLEU is not the mean of its sentences'. Needs `upslope[overlap]`; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any, Literal

from upslope.errors import DependencyError, RewardError
from upslope.rewards.columns import RowReward, needing, references

Tokenize = Literal["words", "blanks", "characters"]


@dataclass(frozen=True, slots=True)
class CorpusScore:
    """A score in [0, 100], as papers print it, and sacrebleu's signature, which says how it was computed."""

    value: float
    signature: str


def bleu(column: str = "answer", *, tokenize: str = "13a", ignore_case: bool = False) -> RowReward:
    """Sentence BLEU in [0, 1], of the n-grams that the completion is long enough for, with exponential smoothing.

    tokenize is sacrebleu's: "13a", "intl", "zh", "char", "none" and more.
    Raises: DependencyError without sacrebleu; RewardError for an unknown tokenize.
    Source: Papineni et al. 2002; sacrebleu's `BLEU(effective_order=True)`, Post 2018, arXiv:1804.08771.
    """
    settings = {"tokenize": tokenize, "lowercase": ignore_case, "effective_order": True}
    _metric("BLEU", **settings)  # what cannot work is told here, not at the first row

    def bleu(completion: str, **columns: Any) -> float:
        return _sentence(_metric("BLEU", **settings), completion, _texts(columns, column))

    return needing(column, bleu)


def chrf(column: str = "answer", *, word_order: int = 0, ignore_case: bool = False) -> RowReward:
    """Sentence chrF in [0, 1]: the F2 of character n-grams up to 6; word_order = 2 gives chrF++.

    Raises: DependencyError without sacrebleu.
    Source: Popovic 2015, 2017; sacrebleu's `CHRF`.
    """
    settings = {"word_order": word_order, "lowercase": ignore_case}
    _metric("CHRF", **settings)

    def chrf(completion: str, **columns: Any) -> float:
        return _sentence(_metric("CHRF", **settings), completion, _texts(columns, column))

    return needing(column, chrf)


def one_minus_ter(column: str = "answer", *, ignore_case: bool = True) -> RowReward:
    """1 - TER: 1 for the reference itself, 0 for nothing, below 0 where a long text needs more edits than that.

    TER is the number of words to insert, delete, replace or shift, over the reference's words (the mean of several).
    Raises: DependencyError without sacrebleu.
    Source: Snover et al. 2006; sacrebleu's `TER`.
    """
    settings = {"case_sensitive": not ignore_case}
    _metric("TER", **settings)

    def one_minus_ter(completion: str, **columns: Any) -> float:
        return 1.0 - float(_metric("TER", **settings).sentence_score(completion, _texts(columns, column)).score) / 100

    return needing(column, one_minus_ter)


def rouge_1(column: str = "answer", *, stem: bool = False, tokenize: Tokenize = "words") -> RowReward:
    """ROUGE-1 in [0, 1]: the F1 of words shared with the reference, the best of several.

    tokenize "words" is ROUGE's own, which keeps a-z and 0-9 and nothing else; "blanks" cuts at blank space only,
    "characters" takes every character for a word. stem reduces words longer than three letters by Porter's stemmer.
    Raises: DependencyError without rouge-score; RewardError for an unknown tokenize.
    Source: Lin 2004; rouge-score's `RougeScorer`.
    """
    return _rouge("rouge1", column, stem, tokenize)


def rouge_2(column: str = "answer", *, stem: bool = False, tokenize: Tokenize = "words") -> RowReward:
    """ROUGE-2 in [0, 1]: as `rouge_1`, of pairs of neighbouring words."""
    return _rouge("rouge2", column, stem, tokenize)


def rouge_l(column: str = "answer", *, stem: bool = False, tokenize: Tokenize = "words") -> RowReward:
    """ROUGE-L in [0, 1]: as `rouge_1`, of the longest common subsequence of words."""
    return _rouge("rougeL", column, stem, tokenize)


def corpus_bleu(
    completions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    tokenize: str = "13a",
    ignore_case: bool = False,
) -> CorpusScore:
    """BLEU of all completions together; references holds for each one text or a list.

    Raises: RewardError when the lengths differ or a row has no reference; DependencyError without sacrebleu.
    """
    return _corpus(_metric("BLEU", tokenize=tokenize, lowercase=ignore_case), completions, references)


def corpus_chrf(
    completions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    word_order: int = 0,
    ignore_case: bool = False,
) -> CorpusScore:
    """chrF of all completions together (chrF++ with word_order = 2); arguments and errors as `corpus_bleu`."""
    return _corpus(_metric("CHRF", word_order=word_order, lowercase=ignore_case), completions, references)


def _corpus(metric: Any, completions: Sequence[str], found: Sequence[str | Sequence[str]]) -> CorpusScore:
    if len(completions) != len(found) or not completions:
        raise RewardError(f"there are {len(completions)} completions and {len(found)} rows of references; give as many")
    rows = [_texts({"references": texts}, "references") for texts in found]
    by_place = [list(texts) for texts in zip_longest(*rows)]  # sacrebleu: the first of every row, the second, ...
    value = metric.corpus_score(list(completions), by_place).score
    return CorpusScore(float(value), str(metric.get_signature()))


def _sentence(metric: Any, completion: str, texts: list[str]) -> float:
    """A score in [0, 1]; sacrebleu's sums of logarithms end up to 1e-13 above 100."""
    return min(1.0, float(metric.sentence_score(completion, texts).score) / 100)


def _texts(columns: Mapping[str, Any], column: str) -> list[str]:
    texts = [text for text in references(columns, column) if text.strip()]
    if not texts:
        raise RewardError(f"the column {column!r} holds only blank text, with which nothing can overlap")
    return texts


@cache
def _metric(name: str, **settings: Any) -> Any:
    """sacrebleu's metric of that name, made once a process."""
    try:
        import sacrebleu
    except ImportError as error:
        raise DependencyError("sacrebleu", "overlap") from error
    known = sacrebleu.BLEU.TOKENIZERS
    if settings.get("tokenize", "13a") not in known:
        raise RewardError(f"bleu got tokenize = {settings['tokenize']!r}; there are: {', '.join(known)}")
    try:
        return getattr(sacrebleu, name)(**settings)
    except Exception as error:  # a tokenizer that needs a further package or a download
        reason = " ".join(str(error).split())
        raise RewardError(f"sacrebleu cannot make {name} with {settings}: {reason}") from error


def _rouge(kind: str, column: str, stem: bool, tokenize: Tokenize) -> RowReward:
    _rouge_scorer(kind, stem, tokenize)

    def rouge(completion: str, **columns: Any) -> float:
        scorer, tokenizer = _rouge_scorer(kind, stem, tokenize)
        texts = [text for text in _texts(columns, column) if tokenizer.tokenize(text)]
        if not texts:
            raise RewardError(
                f"the column {column!r} holds no letter a-z and no digit, of which ROUGE's words are made; "
                "set tokenize = 'characters' or 'blanks'"
            )
        return float(scorer.score_multi(texts, completion)[kind].fmeasure)

    rouge.__name__ = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}[kind]
    return needing(column, rouge)


class _Splitter:
    """A tokenizer for rouge-score that leaves every script as it is."""

    def __init__(self, *, characters: bool) -> None:
        self._characters = characters

    def tokenize(self, text: str) -> list[str]:
        words = text.lower().split()
        return list("".join(words)) if self._characters else words


@cache
def _rouge_scorer(kind: str, stem: bool, tokenize: str) -> tuple[Any, Any]:
    """rouge-score's scorer and the tokenizer in it, made once a process."""
    try:
        from rouge_score import rouge_scorer, tokenizers
    except ImportError as error:
        raise DependencyError("rouge-score", "overlap") from error
    if tokenize not in ("words", "blanks", "characters") or (stem and tokenize != "words"):
        raise RewardError(
            f"rouge got tokenize = {tokenize!r} and stem = {stem}; tokenize is 'words', 'blanks' or 'characters', "
            "and only 'words' can be stemmed"
        )
    words = tokenize == "words"
    tokenizer = tokenizers.DefaultTokenizer(stem) if words else _Splitter(characters=tokenize == "characters")
    return rouge_scorer.RougeScorer([kind], tokenizer=tokenizer), tokenizer
