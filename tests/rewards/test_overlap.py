"""BLEU, chrF, TER and ROUGE against published examples and values worked by hand."""

import json
import math
import subprocess
import sys

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import DependencyError, RewardError
from upslope.rewards import (
    RewardTerm,
    Scorer,
    bleu,
    chrf,
    corpus_bleu,
    corpus_chrf,
    one_minus_ter,
    overlap,
    rouge_1,
    rouge_2,
    rouge_l,
)
from upslope.tasks import Task, load_terms

SCRIPTS = [
    bleu(),
    bleu(tokenize="char"),
    chrf(),
    chrf(word_order=2),
    one_minus_ter(),
    *(rouge(tokenize=tokenize) for rouge in (rouge_1, rouge_l) for tokenize in ("blanks", "characters")),
]
"""One of each that reads any script."""

WORD = st.text("abcxyzäßéжш中文あ한0123٣", min_size=1, max_size=6)
TEXT = st.lists(WORD, min_size=1, max_size=8).map(" ".join)


def test_bleu_is_its_formula():
    """Precisions 5/6, 3/5, 2/4, 1/3 of one to four words, with no brevity penalty."""
    value = bleu()(completion="the cat sat on the mat", answer="the cat sat on a mat")
    assert value == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))


def test_bleu_takes_only_the_orders_a_short_text_has():
    """Two words that are both there have perfect precisions of orders 1 and 2; what is left is exp(1 - 3/2)."""
    assert bleu()(completion="der Hund", answer="der Hund bellt") == pytest.approx(math.exp(-1 / 2))


def test_bleu_smooths_orders_without_a_match():
    """Order 1 has 2 of 3; orders 2 and 3 have none and count as 1 / (2 * 2) and 1 / (4 * 1)."""
    assert bleu()(completion="a b c", answer="a x c") == pytest.approx((2 / 3 / 4 / 4) ** (1 / 3))


def test_bleu_options():
    assert bleu()(completion="Der Hund", answer="der Hund") < 1.0
    assert bleu(ignore_case=True)(completion="Der Hund", answer="der Hund") == 1.0
    assert bleu("zh", tokenize="zh")(completion="我爱你", zh="我爱他") == pytest.approx(
        (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)
    )


def test_chrf_is_its_formula():
    """The mean precision and recall of the orders that both texts have, then F2."""
    assert chrf()(completion="abc", answer="abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    precision, recall = 1, (1 / 2 + 1 / 3) / 2
    assert chrf()(completion="ab", answer="abab") == pytest.approx(5 * precision * recall / (4 * precision + recall))


@pytest.mark.parametrize(
    ("completion", "edits", "words"),
    [
        ("the cat sat", 1, 4),
        ("the cat sat down", 0, 4),
        ("down the cat sat", 1, 4),
        ("The dog sat down", 1, 4),
        ("the cat sat down and then it slept again", 5, 4),
        ("", 4, 4),
    ],
)
def test_one_minus_ter_counts_edits(completion, edits, words):
    """Missing, replaced, shifted and superfluous words, over the words of the reference."""
    assert one_minus_ter()(completion=completion, answer="the cat sat down") == pytest.approx(1 - edits / words)


def test_rouge_of_lins_example():
    """Lin 2004, section 3.1: ROUGE-2 cannot tell the two candidates apart, ROUGE-L gives 3/4 and 2/4."""
    reference = "police killed the gunman"
    for candidate, longest in (("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)):
        assert rouge_1()(completion=candidate, answer=reference) == pytest.approx(3 / 4)
        assert rouge_2()(completion=candidate, answer=reference) == pytest.approx(1 / 3)
        assert rouge_l()(completion=candidate, answer=reference) == pytest.approx(longest)
        assert rouge_1(stem=True)(completion=candidate, answer=reference) == 1.0


def test_rouge_is_the_f1():
    """6 of 7 written words are there, of 6 in the reference: 2 * 6 / 13."""
    value = rouge_1()(completion="the cat was found under the bed", answer="the cat was under the bed")
    assert value == pytest.approx(12 / 13)


def test_rouge_of_other_scripts():
    """Its own words are of a-z and 0-9: a reference without any is an error, never a silent 0."""
    with pytest.raises(RewardError, match=r"no letter a-z and no digit.*set tokenize = 'characters'"):
        rouge_1()(completion="我爱你", answer="我爱他")
    assert rouge_1(tokenize="characters")(completion="我 爱你", answer="我爱他") == pytest.approx(2 / 3)
    assert rouge_1(tokenize="blanks")(completion="Да нет", answer="да или нет") == pytest.approx(4 / 5)


def test_corpus_scores_of_sacrebleus_readme():
    """The example of sacrebleu's README: BLEU 48.53, chrF2 59.73, of three sentences with two references each."""
    completions = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    found = corpus_bleu(completions, references)
    assert round(found.value, 2) == 48.53
    assert found.signature.startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert round(corpus_chrf(completions, references).value, 2) == 59.73


def test_corpus_bleu_pools_counts_of_rows_with_one_or_more_references():
    """A corpus without any four words in a row has a BLEU of 0; else precisions are those of all rows' counts."""
    assert corpus_bleu(["a b c", "d x"], ["a b c", ["d e", "q"]]).value == 0.0
    pooled = corpus_bleu(["a b c d", "e x"], ["a b c d", ["e f", "q"]]).value
    assert pooled == pytest.approx(100 * (5 / 6 * 3 / 4 * 2 / 2 * 1 / 1) ** (1 / 4))


def test_corpus_needs_a_row_of_references_for_each_completion():
    with pytest.raises(RewardError, match="2 completions and 1 rows of references"):
        corpus_bleu(["a", "b"], ["a"])
    with pytest.raises(RewardError, match="an empty list"):
        corpus_chrf(["a"], [[]])


@given(TEXT)
def test_the_reference_itself_is_the_maximum(text):
    assert [rule(completion=text, answer=text) for rule in SCRIPTS] == [pytest.approx(1.0)] * len(SCRIPTS)


@given(TEXT, TEXT)
def test_scores_are_bounded(text, reference):
    values = [rule(completion=text, answer=reference) for rule in SCRIPTS]
    assert all(value <= 1.0 for value in values)
    assert min(value for value, rule in zip(values, SCRIPTS, strict=True) if rule.__name__ != "one_minus_ter") >= 0.0


@given(TEXT, st.sampled_from(["", " ", "\n\t"]))
def test_nothing_earns_nothing(reference, blank):
    assert [rule(completion=blank, answer=reference) for rule in SCRIPTS] == [0.0] * len(SCRIPTS)


@given(TEXT, TEXT, TEXT)
def test_any_of_several_references_will_do(text, first, second):
    for rule in SCRIPTS:
        assert rule(completion=text, answer=[first, text, second]) == pytest.approx(1.0)
        if rule.__name__ in ("chrf", "rouge_1", "rouge_l"):  # BLEU and TER take lengths from all references
            both = rule(completion=text, answer=[first, second])
            assert both == max(rule(completion=text, answer=first), rule(completion=text, answer=second))


@pytest.mark.parametrize("reference", [None, [], "", "  ", [" ", ""]])
def test_a_row_without_a_reference_is_dropped_not_scored(reference, rollout):
    for rule in SCRIPTS:
        with pytest.raises(RewardError, match="column 'answer'"):
            rule(completion="x", answer=reference)
    with Scorer([RewardTerm(bleu())], timeout_s=5.0, isolation="none") as scorer:
        rows = scorer.score([rollout("x y", answer=reference), rollout("x y", answer="x y")])
    assert [row.failure for row in rows] == ["bleu: raised RewardError", None]
    assert rows[1].metrics["bleu"] == 1.0


def test_a_missing_column_is_told_when_the_task_is_made():
    prompts = [{"prompt": "a", "de": "b"}]
    with pytest.raises(RewardError, match="reward 'chrf' asks for 'en'"):
        Task(prompts=prompts, reward=load_terms([{"function": "chrf", "column": "en"}]))
    assert Task(prompts=prompts, reward=load_terms([{"function": "chrf", "column": "de"}])).terms[0].name == "chrf"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bleu(tokenize="13b"), "tokenize = '13b'; there are: .*13a"),
        (lambda: rouge_1(tokenize="zh"), "tokenize = 'zh'"),
        (lambda: rouge_l(tokenize="blanks", stem=True), "only 'words' can be stemmed"),
    ],
)
def test_wrong_settings_are_told_at_once(make, message):
    with pytest.raises(RewardError, match=message):
        make()


@pytest.mark.parametrize(("package", "make"), [("sacrebleu", bleu), ("rouge_score", rouge_1)])
def test_a_missing_package_names_its_extra(package, make, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    overlap._metric.cache_clear()
    overlap._rouge_scorer.cache_clear()
    with pytest.raises(DependencyError, match=r"pip install 'upslope\[overlap\]'"):
        make()


def test_terms_travel_to_a_process_without_torch(tmp_path):
    """A fresh process rebuilds and calls them, and has no torch after that."""
    rules = [
        load_terms([{"function": name, "column": "de"}])[0].function for name in ("bleu", "one_minus_ter", "rouge_l")
    ]
    (tmp_path / "rules").write_bytes(cloudpickle.dumps(rules))
    code = (
        "import json, pickle, sys\n"
        f"rules = pickle.load(open({str(tmp_path / 'rules')!r}, 'rb'))\n"
        "values = [rule(completion='a b', de='a b') for rule in rules]\n"
        "print(json.dumps([values, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1.0, 1.0, 1.0], False]
