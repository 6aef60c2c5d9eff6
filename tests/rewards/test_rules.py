"""The plain rules, against cases worked by hand."""

import asyncio
import importlib
import json
import time
from decimal import Decimal

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import DependencyError, RewardError
from upslope.rewards import (
    brevity,
    closeness,
    contains,
    correct,
    cost_matrix,
    digits_right,
    ended,
    ends_with,
    exact_match,
    json_parsable,
    json_schema,
    last_number,
    length_penalty,
    math_answer,
    mathematics,
    numeric_answer,
    overlong_penalty,
    regex_match,
    repetition_penalty,
    starts_with,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("14", "14"),
        ("8 + 6 = 14.", "14"),
        ("= -1,234.50.", "-1234.5"),
        ("8-6", "6"),
        ("(3)-4", "4"),
        ("from 3 to -4", "-4"),
        ("\u22127 degrees", "-7"),
        ("+5", "5"),
        ("1,2,3", "3"),
        ("1,234,567", "1234567"),
        ("1,2345", "2345"),
        ("$18.00 each", "18"),
        ("0.5", "0.5"),
        ("-.5", "-0.5"),
        ("No.5", "5"),
        ("3.14.15", "15"),
        ("007", "7"),
        ("x2", "2"),
        ("", None),
        ("no digits", None),
        ("\u0663", None),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "the answer is {}.", "1 + 2 = 4? No: {:,}!"]))
def test_last_number_reads_what_was_written(number, template):
    assert last_number(template.format(number)) == number


def test_correct_needs_the_right_number_and_an_end():
    assert correct("8 + 6 = 14", "14", terminated=True) == 1.0
    assert correct("14.0", 14, terminated=True) == 1.0
    assert correct("14", "14", terminated=False) == 0.0
    assert correct("14 or 15", "14", terminated=True) == 0.0
    assert correct("fourteen", "14", terminated=True) == 0.0
    with pytest.raises(ValueError, match="no number"):
        correct("14", "fourteen", terminated=True)


@pytest.mark.parametrize(
    ("written", "answer", "share"),
    [
        ("123", 123, 1),
        ("124", 123, 2 / 3),
        ("23", 123, 2 / 3),
        ("1123", 123, 3 / 4),
        ("-123", 123, 0),
        ("?", 123, 0),
        ("7", -7, 0),
        ("-7", -7, 1),
        ("0", 0, 1),
        ("321", 123, 1 / 3),
        ("046", 46, 1),
    ],
)
def test_digits_right(written, answer, share):
    assert digits_right(written, answer) == pytest.approx(share)


def test_closeness():
    assert [closeness(text, 50) for text in ("50", "40", "60", "0", "-100", "none")] == [1.0, 0.8, 0.8, 0.0, 0.0, 0.0]
    assert closeness("0.5", 0) == 0.5


def test_brevity_and_ended():
    assert [brevity(text) for text in ("14", " 14\n", "= 14", "fourteen", "")] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert ended("", terminated=True) == 1.0
    assert ended("14", terminated=False) == 0.0


def test_exact_match_contains_regex():
    assert exact_match("label")(completion=" spam\n", label="spam") == 1.0
    assert exact_match("label")(completion="Spam", label="spam") == 0.0
    assert exact_match("label", ignore_case=True)(completion="Spam", label="spam") == 1.0
    assert contains()(completion="it is Paris.", answer="Paris") == 1.0
    assert contains()(completion="it is paris.", answer="Paris") == 0.0
    assert contains(ignore_case=True)(completion="it is paris.", answer="Paris") == 1.0
    assert regex_match(r"<b>.*</b>")(completion="so <b>1</b>.") == 1.0
    assert regex_match(r"<b>.*</b>", full=True)(completion="so <b>1</b>.") == 0.0
    with pytest.raises(RewardError, match="no regular expression"):
        regex_match("(")
    with pytest.raises(RewardError, match="no column 'label'"):
        exact_match("label")(completion="x", answer="y")


def test_a_list_holds_several_references():
    assert exact_match()(completion="Paris ", answer=["the city", "Paris"]) == 1.0
    assert exact_match()(completion="Par", answer=["the city", "Paris"]) == 0.0
    assert contains(ignore_case=True)(completion="In PARIS.", answer=["Rome", "Paris"]) == 1.0
    assert contains()(completion="In London.", answer=["Rome", "Paris"]) == 0.0
    for rule in (exact_match(), contains()):
        with pytest.raises(RewardError, match="empty list; give at least one reference"):
            rule(completion="None", answer=[])
        with pytest.raises(RewardError, match="no column 'answer' to compare with"):
            rule(completion="None", answer=None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5e3, null]}', 1.0),
        (' "text"\n', 1.0),
        ("9" * 5000, 1.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1,}', 0.0),
        ('{"a": 1} so', 0.0),
        ("NaN", 0.0),
        ("[-Infinity]", 0.0),
        ("", 0.0),
        ("[" * 200_000, 0.0),
    ],
)
def test_json_parsable(text, value):
    """RFC 8259, whose numbers are as long as one likes, and never NaN."""
    assert json_parsable()(completion=text) == value


def test_json_with_keys():
    rule = json_parsable(keys=["name", "age"])
    texts = ('{"name": "x", "age": 3, "more": 1}', '{"name": "x"}', '["name", "age"]', '"name age"')
    assert [rule(completion=text) for text in texts] == [1.0, 0.0, 0.0, 0.0]


def test_beginnings_and_ends():
    assert [starts_with("<think>")(completion=text) for text in ("\n<think>a", "a<think>", "")] == [1.0, 0.0, 0.0]
    assert [ends_with("</answer>")(completion=text) for text in ("a</answer>\n", "</answer>a", "")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("ids", "n", "share"),
    [
        ([1, 2, 3], 1, 0),
        ([1, 1, 1, 1], 1, 3 / 4),
        ([1, 2, 1, 2, 1], 2, 2 / 4),
        ([1, 2, 1, 2, 1], 3, 1 / 3),
        ([1, 2], 3, 0),
        ([], 1, 0),
    ],
)
def test_repetition_penalty_is_the_share_of_ngrams_seen_before(ids, n, share):
    assert repetition_penalty(n)(completion="", completion_ids=ids) == pytest.approx(-share)


def test_repetition_needs_an_ngram():
    with pytest.raises(RewardError, match="at least 1 token"):
        repetition_penalty(0)


def test_cost_matrix():
    """What stands in the table by true and chosen label, else right or wrong."""
    rule = cost_matrix(table={"spam": {"ham": -5}, "ham": {"ham": 0.5}})
    earned = {
        (true, chosen): rule(completion=chosen, label=true) for true in ("spam", "ham") for chosen in ("spam", "ham")
    }
    assert earned == {("spam", "spam"): 1.0, ("spam", "ham"): -5.0, ("ham", "spam"): 0.0, ("ham", "ham"): 0.5}
    assert [cost_matrix("kind")(completion=chosen, kind="b") for chosen in "abc"] == [0.0, 1.0, 0.0]
    for entry in ("-5", float("nan"), None):
        with pytest.raises(RewardError, match="'spam' taken for 'ham'; give a finite number"):
            cost_matrix(table={"spam": {"ham": entry}})


def test_numeric_answer():
    assert numeric_answer("final")(completion="so 1,200 in all", final="#### 1200") == 1.0
    assert numeric_answer("final")(completion="so 1,200 of 1,300", final="#### 1200") == 0.0


def test_overlong_penalty_is_eq_13_of_dapo():
    """arXiv:2503.14476 eq. 13 with L_max = 20, L_cache = 4: 0 up to 16, (16 - n) / 4 up to 20, then -1."""
    penalty = overlong_penalty(max_tokens=20, cache_tokens=4)
    lengths = (1, 16, 17, 18, 20, 21, 99)
    assert [penalty("", num_tokens=n) for n in lengths] == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert length_penalty(0.1)("", num_tokens=5) == -0.5
    for cache in (0, 21):
        with pytest.raises(RewardError, match="0 < cache_tokens <= max_tokens"):
            overlong_penalty(max_tokens=20, cache_tokens=cache)


def test_rules_travel_to_the_worker_without_torch():
    for rule in (exact_match(), numeric_answer(), contains(), regex_match("a"), overlong_penalty(2, 1)):
        blob = cloudpickle.dumps(rule)
        assert b"torch" not in blob
        assert cloudpickle.loads(blob).__name__ == rule.__name__


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        (r"So it is $\frac{1}{2}$.", "0.5", 1.0),
        (r"\boxed{0.50}", r"\frac12", 1.0),
        ("the answer is 1/2", r"$\frac{1}{2}$", 1.0),
        (r"\boxed{(x+1)^2}", "x^2 + 2x + 1", 1.0),
        (r"\boxed{(x+1)^2}", "x^2 + 1", 0.0),
        (r"$\{2, 1\}$", r"\{1,2\}", 1.0),
        ("1,200 in all", "1200", 1.0),
        (r"$\sqrt{8}$", r"2\sqrt{2}", 1.0),
        ("first 3 then 4", "3", 0.0),
        ("no idea", "3", 0.0),
        ("", "3", 0.0),
        (r"\boxed{3", "3", 0.0),
        ("4", ["3", "4"], 1.0),
    ],
)
def test_math_answer(completion, answer, right):
    """Equal as mathematics, worked by hand."""
    assert math_answer()(completion=completion, answer=answer) == right


def test_math_answer_fails_where_it_cannot_judge(monkeypatch):
    """What is no mathematics in the data, or takes too long, is an error: never a 0."""
    with pytest.raises(RewardError, match="'answer' holds no mathematics: ''"):
        math_answer()(completion="3", answer="")
    with pytest.raises(RewardError, match="whole number of seconds"):
        math_answer(timeout_s=0.5)
    monkeypatch.setattr(mathematics, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'upslope\[maths\]'"):
        math_answer()
    monkeypatch.undo()
    grader = importlib.import_module("math_verify.grader")
    monkeypatch.setattr(grader, "sympy_expr_eq", lambda *_: time.sleep(5))
    with pytest.raises(RewardError, match="more than 1 s to compare with '3'"):
        math_answer(timeout_s=1)(completion="4", answer="3")
    with pytest.raises(RewardError, match="main thread only"):
        asyncio.run(asyncio.to_thread(math_answer(), completion="3", answer="3"))


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 1}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"age": 1}', 1.0),
        ('{"age": 1.0}', 1.0),
        (f'{{"age": {"9" * 5000}}}', 1.0),
        ('{"age": 0}', 0.0),
        ('{"age": "1"}', 0.0),
        ('{"age": 1, "b": 2}', 0.0),
        ("{}", 0.0),
        ('{"age": 1', 0.0),
        ('{"age": NaN}', 0.0),
        ("[" * 200_000, 0.0),
    ],
)
def test_json_schema(text, value, tmp_path):
    """JSON Schema's own meaning (an integer may be written 1.0), from a table, a file and a column."""
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert json_schema(SCHEMA)(completion=text) == value
    assert json_schema(str(tmp_path / "schema.json"))(completion=text) == value
    assert json_schema(column="allowed")(completion=text, allowed=json.dumps(SCHEMA)) == value


def test_json_schema_bad_input(tmp_path):
    for settings in ({}, {"schema": {}, "column": "x"}):
        with pytest.raises(RewardError, match="a schema or a column that holds one"):
            json_schema(**settings)
    with pytest.raises(RewardError, match="got no JSON Schema: 'objekt' is not valid"):
        json_schema({"type": "objekt"})
    with pytest.raises(RewardError, match=r"cannot read '.*none.json'"):
        json_schema(str(tmp_path / "none.json"))
    with pytest.raises(RewardError, match="3 is no table"):
        json_schema(column="allowed")(completion="1", allowed=3)
    with pytest.raises(Exception, match="Unresolvable"):  # the network is not asked
        json_schema({"$ref": "http://127.0.0.1:9/schema.json"})(completion="1")
