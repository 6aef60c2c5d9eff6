"""What people said on the rating page, as data: what each verdict becomes, and what is left out and counted."""

from __future__ import annotations

import pytest

import upslope
from upslope.errors import DataError
from upslope.report.questions import Answer, Question
from upslope.report.ratings import Ratings
from upslope.tasks import load_task

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where to?"}]
QUICK = {"trackers": [], "isolation": "none", "checkpoint_every_steps": "none"}


@pytest.fixture
def store(tmp_path):
    return Ratings(tmp_path / "ratings.jsonl")


def rate(store, prompt, texts, verdict, rater="ann"):
    answers = tuple(Answer(f"sample/1/0/{place}", 1, None, text, cut=False) for place, text in enumerate(texts))
    question = Question("/".join([str(prompt), *sorted(texts)]), prompt, answers)
    assert store.add(question, verdict, rater=rater, seconds=1.0, seed=0)
    return question.id


def columns(task):
    return [dict(prompt.columns) for prompt in task.prompts]


def test_each_verdict_of_a_comparison(store, caplog):
    rate(store, "say", ("sea", "sky"), "left")
    rate(store, CHAT, ("home", "away"), "right")
    rate(store, "say", ("sky", "sea"), "left", rater="bob")  # shown the other way round: against ann
    rate(store, "say", ("sea", "fog"), "tie")
    rate(store, "say", ("sky", "fog"), "skip")
    rate(store, "say", ("", "fog"), "right")
    rate(store, "say", ("sea",), 5)
    store.take_back(rate(store, "say", ("fog", "ice"), "left"), rater="ann")
    with store.path.open("a") as file:
        file.write('{"torn": ')
    task = load_task("ratings", {"path": str(store.path)})
    assert columns(task) == [
        {"chosen": "sea", "rejected": "sky", "rater": "ann"},
        {"chosen": "away", "rejected": "home", "rater": "ann"},
        {"chosen": "sky", "rejected": "sea", "rater": "bob"},
    ]
    assert task.prompts[1].content == tuple(CHAT)
    left_out = ["a tie", "a skip", "an empty 'text'", "stars instead of a comparison", "a rating taken back"]
    assert task.skipped == dict.fromkeys(left_out, 1)  # a torn last line is none yet
    assert "2 comparisons are contradicted by another one of the same answers" in caplog.text
    assert "1 with a tie" in caplog.text
    Ratings(store.path).take_back("nothing", rater="ann")
    rate(store, "say", ("one", "two"), "left")
    assert load_task("ratings", {"path": str(store.path.parent)}).skipped["a damaged line"] == 1


def test_stars(store):
    for stars, text in ((1, "sea"), (3, "sky"), (5, "fog"), ("skip", "ice")):
        rate(store, "say", (text,), stars)
    rate(store, "say", ("sea", "sky"), "left")
    task = load_task("ratings", {"path": str(store.path), "stars": True})
    found = [(c["completion"], c["rating"], c.get("desirable")) for c in columns(task)]
    assert found == [("sea", 1.0, False), ("sky", 3.0, None), ("fog", 5.0, True)]
    assert task.skipped == {"a skip": 1, "a comparison instead of stars": 1}


def test_prompts_are_held_out_with_all_their_ratings(store):
    for number in range(20):
        for rater in ("ann", "bob"):
            rate(store, f"say {number}", ("sea", "sky"), "left", rater=rater)
    task = load_task("ratings", {"path": str(store.path), "held_out": 0.25})
    apart, kept = {p.text for p in task.eval_prompts}, {p.text for p in task.prompts}
    assert (len(apart), len(kept), apart & kept) == (5, 15, set())
    assert (len(task.eval_prompts), len(task.prompts)) == (10, 30)
    few = load_task("ratings", {"path": str(store.path), "held_out": 0.01})
    assert {p.text for p in few.eval_prompts} < apart
    with pytest.raises(DataError, match="held_out is 1; it must be a share"):
        load_task("ratings", {"path": str(store.path), "held_out": 1})


def test_no_rating_of_the_kind_is_an_error_that_says_what_there_is(store, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl holds no rating .*upslope rate RUN writes them"):
        load_task("ratings", {"path": str(tmp_path / "none.jsonl")})
    rate(store, "say", ("sea", "sky"), "tie")
    with pytest.raises(DataError, match="which is better \\(1 with a tie\\)"):
        load_task("ratings", {"path": str(store.path)})
    with pytest.raises(DataError, match="no 'chosen', only"):  # a store is no file of the task preferences
        load_task("preferences", {"path": str(store.path)})


def test_reward_models_and_preference_learning_read_the_store(store, tmp_path):
    """Vowels won every comparison: both methods order the held-out ones right; what was left out stands in the log."""
    words = {"aa": "bb", "ee": "cc", "oo": "dd", "iae": "fgh", "uo": "kl"}
    for number in range(6):
        for good, bad in words.items():
            left = (number + len(good)) % 2
            rate(store, f"w{number}", (good, bad) if left else (bad, good), "left" if left else "right")
    rate(store, "w0", ("aa", "ee"), "tie")
    for method, model, more in (
        ("reward_model", "tiny-bert", {"lr": 5e-3}),
        ("preference", "tiny-llama", {"lr": 3e-3, "beta": 0.5}),
    ):
        task = {"task.name": "ratings", "task.options": {"path": str(store.path), "held_out": 0.25}}
        settings = {"method": method, "steps": 10, "every_steps": 10, "prompts_per_step": 8, **QUICK, **more, **task}
        run = upslope.train(model=model, run=tmp_path / method, **settings)
        assert run.metrics["evaluate/metric"][10] > 0.9, method
        (event,) = run.events("skipped_lines")
        assert event["lines"] == {"a tie": 1}
