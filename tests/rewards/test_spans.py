"""Span F1 and its credit by word, against seqeval and against an enumeration of every answer."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities

from upslope.errors import RewardError
from upslope.rewards import RewardTerm, Scorer, find_spans, span_credit, span_f1, tag_accuracy
from upslope.tasks import Task, load_terms

TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-geo-x", "I-geo-x"])
ROW = st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=9)


def f1(true, predicted):
    """seqeval's, of one row; 1 where there is nothing and nothing was predicted."""
    return f1_score([true], [predicted], zero_division=1)


@given(st.lists(TAGS, max_size=9))
def test_spans_are_seqevals(tags):
    assert find_spans(tags) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


def test_what_is_no_bio_tag_lies_outside_in_a_prediction():
    """A generator may write anything in the place of tags."""
    assert find_spans(["B-X", "I-X", "hello", "I-X", "B-", "I", "S-X", "", "I-Y"]) == [
        ("X", 0, 2),
        ("X", 3, 4),
        ("Y", 8, 9),
    ]


@given(ROW)
def test_row_f1_is_seqevals(row):
    predicted, true = ([pair[side] for pair in row] for side in (0, 1))
    assert span_f1()(completion=" ".join(predicted), tags=true) == pytest.approx(f1(true, predicted))


def test_row_f1_of_seqevals_readme():
    """Its two sentences: a MISC span that begins a word early, and a PER span that is right."""
    rule = span_f1("ner")
    true = ["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"]
    assert rule(completion="O O B-MISC I-MISC I-MISC I-MISC O", ner=true) == 0.0
    assert rule(completion="B-PER I-PER O", ner="B-PER I-PER O") == 1.0


def test_row_f1_of_texts_with_another_number_of_tags():
    """2 / (2 + 1), 2 / (1 + 2) and 0 / (0 + 1): what is missing was not found, what is too much is wrong."""
    assert span_f1()(completion="B-X O B-X", tags=["B-X", "O"]) == pytest.approx(2 / 3)
    assert span_f1()(completion="B-X", tags=["B-X", "O", "B-X"]) == pytest.approx(2 / 3)
    assert span_f1()(completion="", tags=["B-X"]) == 0.0


@given(ROW)
def test_credit_is_what_each_span_changes(row):
    """Every word of a span gets seqeval's F1 minus that of the row with O in the span's place; all others get 0."""
    predicted, true = ([pair[side] for pair in row] for side in (0, 1))
    expected = [0.0] * len(row)
    for _, first, last in get_entities(predicted):
        without = [*predicted[:first], *["O"] * (last + 1 - first), *predicted[last + 1 :]]
        expected[first : last + 1] = [f1(true, predicted) - f1(true, without)] * (last + 1 - first)
    credit = span_credit()(completion=" ".join(predicted), tags=true)
    assert credit == pytest.approx(expected)


def test_credit_by_hand():
    """F1 is 2 / 4; without the right span 0 / 3, without the wrong one 2 / 3."""
    credit = span_credit()(completion="B-PER I-PER O B-LOC", tags=["B-PER", "I-PER", "B-ORG", "O"])
    assert credit == pytest.approx([1 / 2, 1 / 2, 0, 1 / 2 - 2 / 3])


@pytest.mark.parametrize(("tags", "exact"), [(["O", "B-X"], True), (["O", "B-X", "I-X"], False)])
def test_credit_of_spans_of_one_word_gives_the_gradient_of_expected_f1(tags, exact):
    """The sum over all answers of probability * credit * grad log-probability, against grad E[F1] by autograd.

    With I-X a word decides what its span's replacement is, so the credit is no longer exact; the docstring says so.
    """
    logits = torch.tensor([[0.3, -0.5, 0.2], [-0.2, 0.4, 0.1], [0.7, 0.1, -0.4]], dtype=torch.float64)[:, : len(tags)]
    logits.requires_grad_()
    logprobs = logits.log_softmax(1)
    true = ["B-X", "O", "B-X"]
    expected_f1, surrogate = 0.0, 0.0
    for answer in itertools.product(range(len(tags)), repeat=3):
        taken = logprobs[range(3), answer]
        names = [tags[choice] for choice in answer]
        expected_f1 = expected_f1 + taken.sum().exp() * f1(true, names)
        credit = torch.tensor(span_credit()(completion=" ".join(names), tags=true), dtype=torch.float64)
        surrogate = surrogate + taken.sum().exp().detach() * (credit * taken).sum()
    (wanted,) = torch.autograd.grad(expected_f1, logits, retain_graph=True)
    (found,) = torch.autograd.grad(surrogate, logits)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12) == exact


def test_tag_accuracy_is_a_share_a_word():
    values = tag_accuracy()(completion="O B-X I-X O", tags=["O", "B-X", "O", "O"])
    assert values == [1 / 4, 1 / 4, 0.0, 1 / 4]
    assert sum(values) == 3 / 4


def test_lists_become_rewards_of_actions(rollout):
    """One number an action; the metric is their sum."""
    terms = load_terms(
        ["tag_accuracy", {"function": "span_credit", "weight": 2.0}, {"function": "span_f1", "weight": 0.0}]
    )
    with Scorer(terms, timeout_s=5.0) as scorer:
        (row,) = scorer.score([rollout("B-X O O", tags=["B-X", "O", "B-X"])])
    assert row.rewards == pytest.approx((1 / 3 + 2 * 2 / 3, 1 / 3, 0.0))
    assert row.metrics == pytest.approx({"tag_accuracy": 2 / 3, "span_credit": 2 / 3, "span_f1": 2 / 3, "reward": 2.0})


def test_other_schemes_and_lengths_are_refused(rollout):
    with pytest.raises(RewardError, match=r"the tag 'S-PER' in the column 'tags'; tags are O, B-X and I-X"):
        span_f1()(completion="O", tags=["S-PER"])
    for rule in (span_credit(), tag_accuracy()):
        with pytest.raises(RewardError, match="2 predicted tags, but its column 'tags' holds 1"):
            rule(completion="O O", tags=["O"])
    with pytest.raises(RewardError, match=r"reward 'span_f1' asks for 'tags', .*did you mean 'tag'"):
        Task(prompts=[{"prompt": "a", "tag": ["O"]}], reward=RewardTerm(span_f1()))
