"""Judged completions from files: three forms, and every way in which a record cannot be used."""

from __future__ import annotations

import json

import pytest

from upslope.errors import DataError
from upslope.tasks import load_task

PAIR = {"prompt": "say", "chosen": "sea", "rejected": "sky"}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def columns(task):
    return [dict(prompt.columns) for prompt in task.prompts]


def test_pairs_with_other_names_chats_and_margins(tmp_path):
    """TRL's form of one message a side is read as its text."""
    row = {"q": "say", "a": [{"role": "assistant", "content": "sea"}], "b": "sky", "by": "2", "id": 7}
    options = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "by"}
    task = load_task("preferences", {"path": written(tmp_path / "p.jsonl", row), **options})
    (found,) = columns(task)
    assert (found["chosen"], found["rejected"], found["margin"], found["id"]) == ("sea", "sky", 2.0, 7)


def test_rankings(tmp_path):
    path = written(tmp_path / "r.jsonl", {"prompt": "say", "order": ["a", "b", "c"]})
    assert columns(load_task("preferences", {"path": path, "ranking": "order"})) == [
        {"order": ["a", "b", "c"], "ranking": ["a", "b", "c"]}
    ]


def test_ratings_say_what_is_desirable_but_in_the_middle(tmp_path):
    rows = [{"prompt": "say", "completion": "sea", "stars": stars} for stars in (1, 3, 4.5)]
    task = load_task("preferences", {"path": written(tmp_path / "s.jsonl", *rows), "rating": "stars"})
    assert [(c["rating"], c.get("desirable")) for c in columns(task)] == [(1.0, False), (3.0, None), (4.5, True)]
    rows = [{"prompt": "say", "text": "sea", "good": good} for good in (True, False)]
    options = {"rating": "good", "completion": "text", "scale": [0, 1]}
    task = load_task("preferences", {"path": written(tmp_path / "b.jsonl", *rows), **options})
    assert [(c["completion"], c["desirable"]) for c in columns(task)] == [("sea", True), ("sea", False)]


BAD = {
    "two equal sides": ({}, PAIR | {"rejected": "sea"}),
    "no 'rejected'": ({}, {"prompt": "say", "chosen": "sea"}),
    "an empty 'chosen'": ({}, PAIR | {"chosen": " "}),
    "a 'chosen' of type NoneType": ({}, PAIR | {"chosen": None}),
    "a 'chosen' of several messages": ({}, PAIR | {"chosen": [{"role": "user", "content": "x"}] * 2}),
    "a 'margin' that is no number": ({"margin": "margin"}, PAIR | {"margin": "much"}),
    "a 'ranking' of fewer than two completions": ({"ranking": "ranking"}, {"prompt": "say", "ranking": ["a"]}),
    "a 'rating' outside 1 to 5": ({"rating": "rating"}, {"prompt": "say", "completion": "sea", "rating": 6}),
    "a 'rating' that is no number": ({"rating": "rating"}, {"prompt": "say", "completion": "sea", "rating": None}),
    "no 'completion'": ({"rating": "rating"}, {"prompt": "say", "rating": 3}),
}
GOOD = {
    "rating": {"prompt": "say", "completion": "sea", "rating": 3},
    "ranking": {"prompt": "say", "ranking": ["a", "b"]},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_record_that_cannot_be_used_is_an_error_by_line_or_counted(tmp_path, reason):
    """CHECKS, data lines: strict names file and line, lenient counts the reason and keeps the rest."""
    options, row = BAD[reason]
    good = GOOD.get(next(iter(options), ""), PAIR | {"margin": 1})
    path = written(tmp_path / "bad.jsonl", good, row)
    with pytest.raises(DataError, match=rf"bad\.jsonl:2: the record has {reason}"):
        load_task("preferences", {"path": path, **options})
    task = load_task("preferences", {"path": path, "strict": False, **options})
    assert task.skipped == {reason: 1}
    assert len(task.prompts) == 1


def test_pairs_that_contradict_each_other_are_kept_counted_and_said(tmp_path, caplog):
    other = {"prompt": "say", "chosen": "sky", "rejected": "sea"}
    rows = [PAIR, other, PAIR, {**other, "prompt": "write"}]
    task = load_task("preferences", {"path": written(tmp_path / "p.jsonl", *rows)})
    assert len(task.prompts) == 4
    assert "3 pairs are contradicted by another pair of the same prompt" in caplog.text
