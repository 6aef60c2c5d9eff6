"""The questions about a run's samples, and the store of what people answer: nothing lost, nothing twice."""

import json
import multiprocessing
import os
from collections import Counter

import pytest

from upslope.errors import RecordError
from upslope.report.questions import questions
from upslope.report.ratings import Ratings


def sample(prompt, text, *, step=1, group=0, number=0, **more):
    own = {"kind": "sample", "step": step, "group": group, "sample": number, "stop_reason": "eos", "weights": "w1"}
    return {**own, "prompt": prompt, "text": text, **more}


def texts(question):
    return [answer.text for answer in question.answers]


TEN = [sample("say", f"t{number}", number=number) for number in range(10)]


def test_every_text_is_compared_with_two_others_and_all_are_connected():
    asked = questions(TEN, stars=False, seed=0)
    assert len(asked) == 10
    assert Counter(text for question in asked for text in texts(question)) == {f"t{n}": 2 for n in range(10)}
    reached = {"t0"}
    for _ in asked:
        reached |= {text for question in asked if reached & set(texts(question)) for text in texts(question)}
    assert len(reached) == 10


def test_two_texts_are_one_question_and_one_text_is_none():
    rows = [sample("a", "x"), sample("a", "y"), sample("a", "x", step=2), sample("b", "x"), sample("b", "x", number=1)]
    (question,) = questions(rows, stars=False, seed=0)
    assert sorted(texts(question)) == ["x", "y"]
    assert {a.text: a.step for a in question.answers} == {"x": 1, "y": 1}  # of equal texts the first stands
    assert [texts(question) for question in questions(rows, stars=True, seed=3)] != []
    assert sorted((q.prompt, *texts(q)) for q in questions(rows, stars=True, seed=3)) == [
        ("a", "x"), ("a", "y"), ("b", "x")
    ]  # fmt: skip


def test_which_side_is_left_is_a_fair_coin_of_the_seed():
    """400 pairs: the first written text stands left in half of them (3 deviations: 30), afresh with each seed."""
    rows = [sample(f"p{n}", text, group=n, number=i) for n in range(400) for i, text in enumerate(("first", "second"))]
    sides = [{q.id: texts(q)[0] == "first" for q in questions(rows, stars=False, seed=seed)} for seed in (0, 1)]
    for side in sides:
        assert abs(sum(side.values()) - 200) < 30
    assert abs(sum(sides[0][id] == sides[1][id] for id in sides[0]) - 200) < 30
    again = questions(rows[::-1], stars=False, seed=0)
    assert [q.id for q in again] == list(sides[0])  # the order is that of the seed, not of the log
    assert [q.id for q in again] != list(sides[1])


def test_samples_that_come_later_part_one_pair_of_neighbours_only():
    before = {q.id: texts(q) for q in questions(TEN, stars=False, seed=5)}
    after = {q.id: texts(q) for q in questions([*TEN, sample("say", "new", step=2)], stars=False, seed=5)}
    assert len(after) == 11
    assert len(before.keys() - after.keys()) == 1
    assert all(after[id] == sides for id, sides in before.items() if id in after)


def test_lines_from_elsewhere_are_no_samples():
    odd = [{"kind": "sample"}, sample(7, "x"), sample("p", None), sample([{"role": "user"}], "x"), sample(["p"], "x")]
    assert questions(odd, stars=True, seed=0) == []


@pytest.fixture
def asked():
    return questions(TEN, stars=False, seed=0)


def add(ratings, question, verdict="left", rater="ann"):
    return ratings.add(question, verdict, rater=rater, seconds=1.5, seed=0)


def verdicts(ratings):
    return [(r["question"], r["verdict"]) for r in ratings.standing()]


def test_a_line_holds_all_that_was_seen(tmp_path, asked):
    ratings = Ratings(tmp_path / "r.jsonl")
    assert add(ratings, asked[0], "right")
    line = json.loads(ratings.path.read_text())
    assert line.pop("time") > 1.7e9
    sides = [{"id": a.id, "step": 1, "weights": "w1", "text": a.text} for a in asked[0].answers]
    assert line == {
        "kind": "rating", "step": 1, "question": asked[0].id, "rater": "ann", "verdict": "right", "seconds": 1.5,
        "seed": 0, "prompt": "say", "samples": sides,
    }  # fmt: skip
    assert sides[0]["id"].startswith("sample/1/0/")


def test_a_question_is_rated_once_by_each_rater_until_it_is_taken_back(tmp_path, asked):
    one, other = Ratings(tmp_path / "r.jsonl"), Ratings(tmp_path / "r.jsonl")
    assert add(one, asked[0])
    assert not add(other, asked[0], "right")  # the second tab
    assert add(other, asked[0], "right", rater="bob")
    assert not one.take_back(asked[1].id, rater="ann")
    assert other.take_back(asked[0].id, rater="ann")
    assert not one.take_back(asked[0].id, rater="ann")
    assert add(one, asked[0], "tie")
    for ratings in (one, other, Ratings(tmp_path / "r.jsonl")):
        assert verdicts(ratings) == [(asked[0].id, "right"), (asked[0].id, "tie")]
        assert (ratings.taken_back, ratings.damaged) == (1, 0)


def test_files_joined_count_no_rating_twice(tmp_path, asked):
    add(Ratings(tmp_path / "r.jsonl"), asked[0])
    (tmp_path / "r.jsonl").write_text((tmp_path / "r.jsonl").read_text() * 3)
    assert len(Ratings(tmp_path / "r.jsonl").standing()) == 1


@pytest.mark.parametrize("torn", [1, 20, 400])
def test_a_torn_last_line_loses_itself_only(tmp_path, asked, torn):
    """Another process dies in mid-write while this one has the file open."""
    path = tmp_path / "r.jsonl"
    ratings = Ratings(path)
    add(ratings, asked[0])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:torn].rstrip(b"\n"))
    assert verdicts(Ratings(path)) == [(asked[0].id, "left")]
    assert add(ratings, asked[1], "right")
    for reader in (ratings, Ratings(path)):
        assert verdicts(reader) == [(asked[0].id, "left"), (asked[1].id, "right")]
    assert reader.damaged == (0 if torn == 400 else 1)  # 400: all but its line's end, so a second copy of the first


def test_what_is_no_rating_is_counted(tmp_path, asked):
    path = tmp_path / "r.jsonl"
    add(Ratings(path), asked[0])
    good = json.loads(path.read_text()) | {"rater": "bob"}
    (side, _) = good["samples"]
    odd = [
        {"verdict": "best"},
        {"verdict": True},
        {"verdict": 1},
        {"verdict": ["left"]},
        {"samples": []},
        {"samples": [7, 8]},
    ]
    odd += [{"samples": [side], "verdict": stars} for stars in (0, 6, "left", 2.5)] + [{"kind": "other"}]
    with path.open("a") as file:
        file.writelines(json.dumps(good | change) + "\n" for change in odd)
        file.write("no json\n[1]\n\n")
    ratings = Ratings(path)
    assert len(ratings.standing()) == 1
    assert ratings.damaged == len(odd) + 2


def test_text_that_spells_a_number_stays_text(tmp_path):
    asked = questions([sample("NaN", "Infinity"), sample("NaN", "\ud800 é")], stars=False, seed=0)
    ratings = Ratings(tmp_path / "r.jsonl")
    add(ratings, asked[0], rater="NaN")
    (rating,) = Ratings(ratings.path).standing()
    assert (rating["prompt"], rating["rater"]) == ("NaN", "NaN")
    assert sorted(side["text"] for side in rating["samples"]) == ["Infinity", "\ud800 é"]


def test_a_full_disk_is_said_and_loses_nothing_else(tmp_path, asked, file_size_limit):
    ratings = Ratings(tmp_path / "r.jsonl")
    add(ratings, asked[0])
    with file_size_limit(ratings.path.stat().st_size + 50), pytest.raises(RecordError, match=r"was not saved: .*large"):
        add(ratings, asked[1])
    assert verdicts(ratings) == [(asked[0].id, "left")]
    assert add(ratings, asked[1])  # the same again, once there is room
    assert verdicts(Ratings(ratings.path)) == [(asked[0].id, "left"), (asked[1].id, "left")]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RecordError, match=r"there is no folder .*none"):
        Ratings(tmp_path / "none" / "r.jsonl")


def test_a_rating_is_on_the_disk_before_it_is_acknowledged(tmp_path, asked, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), real(file))[1])
    ratings = Ratings(tmp_path / "r.jsonl")
    add(ratings, asked[0])
    assert synced == [ratings.path.stat().st_size]


def _rate_all(path, rater, fresh):
    ratings = Ratings(path)
    for question in questions(TEN, stars=False, seed=0):
        fresh.put((question.id, rater, add(ratings, question, rater=rater)))


def test_raters_and_tabs_at_once_lose_and_double_nothing(tmp_path):
    """Four processes, two of them the same rater: each question is written once by each rater, whoever comes first."""
    context = multiprocessing.get_context("fork")
    fresh, path = context.SimpleQueue(), tmp_path / "r.jsonl"
    raters = ["ann", "ann", "bob", "eve"]
    processes = [context.Process(target=_rate_all, args=(path, rater, fresh)) for rater in raters]
    for process in processes:
        process.start()
    said = Counter((id, rater) for id, rater, was_fresh in (fresh.get() for _ in range(40)) if was_fresh)
    for process in processes:
        process.join(30)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    written = Counter((line["question"], line["rater"]) for line in lines)
    assert written == said
    assert len(written) == 30
    assert set(written.values()) == {1}
