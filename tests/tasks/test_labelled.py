"""Tasks of labels: what is read, refused by line, split into parts, and made noisy."""

import json
from collections import Counter

import pytest

from upslope.errors import DataError, RecipeError
from upslope.tasks.labelled import labelled
from upslope.tasks.loading import load_task

TEXTS = [{"text": f"text number {i}", "label": "spam" if i % 5 == 0 else "ham"} for i in range(100)]
SENTENCES = [
    {"tokens": ["Ann", "Lee", "ran"], "tags": ["B-PER", "I-PER", "O"]},
    {"tokens": ["In", "Rome"], "tags": ["O", "B-LOC"]},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "train.jsonl", TEXTS)


def test_labels_are_those_of_the_file_and_the_reward_is_being_right(texts):
    task = labelled(texts, eval=texts, num_eval=10)
    assert task.labels == ("ham", "spam")
    assert len(task.prompts) == 100
    assert len(task.eval_prompts) == 10
    reward = task.terms[0].function
    assert reward(completion="spam", label="spam") == 1.0
    assert reward(completion="ham", label="spam") == 0.0


def test_words_come_with_their_tags(tmp_path):
    task = labelled(write(tmp_path / "s.jsonl", SENTENCES), text="tokens", label="tags")
    assert task.labels == ("O", "B-LOC", "B-PER", "I-PER")
    assert task.prompts[0].content == "Ann Lee ran"
    assert task.prompts[0].columns["words"] == ["Ann", "Lee", "ran"]
    assert task.terms[0].function(completion="B-PER I-PER O", tags=["B-PER", "I-PER", "O"]) == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no 'label'"),
        ({"text": "x", "label": ""}, "no 'label'"),
        ({"text": "x", "label": 3}, "no 'label'"),
        ({"text": "x", "label": ["ham"]}, "another number of 'label' than of words"),
        ({"text": ["x", "y"], "label": ["ham"]}, "another number of 'label' than of words"),
        ({"text": "x", "label": "eggs"}, "an unknown label in 'label'"),
        ({"text": "  ", "label": "ham"}, "an empty 'text'"),
    ],
)
def test_a_bad_row_is_refused_by_line_or_counted(tmp_path, row, message):
    path = write(tmp_path / "bad.jsonl", [*TEXTS[:2], row])
    with pytest.raises(DataError, match=rf"bad.jsonl:3: the record has {message}"):
        labelled(path, labels=("ham", "spam"))
    task = labelled(path, labels=("ham", "spam"), strict=False)
    assert len(task.prompts) == 2
    assert sum(task.skipped.values()) == 1


def test_a_held_out_label_that_training_lacks_is_refused(tmp_path, texts):
    other = write(tmp_path / "dev.jsonl", [{"text": "x", "label": "eggs"}])
    with pytest.raises(DataError, match=r"dev.jsonl:1: .*unknown label"):
        labelled(texts, eval=other)


def test_parts_are_disjoint_stratified_and_decided_by_the_seed(texts):
    few = labelled(texts, num_labelled=20, part="labelled")
    rest = labelled(texts, num_labelled=20, part="unlabelled")
    ids = {prompt.id for prompt in few.prompts}
    assert len(ids) == 20
    assert ids.isdisjoint(prompt.id for prompt in rest.prompts)
    assert len(rest.prompts) == 80
    assert Counter(prompt.columns["label"] for prompt in few.prompts) == {"ham": 16, "spam": 4}
    assert few.labels == rest.labels
    assert {p.id for p in labelled(texts, num_labelled=20, part="labelled").prompts} == ids
    assert {p.id for p in labelled(texts, num_labelled=20, part="labelled", seed=1).prompts} != ids


def test_noise_has_the_rate_it_says_and_spares_what_is_held_out(texts):
    task = labelled(texts, eval=texts, label_noise=0.3, text_noise=0.5, seed=3)
    flipped = sum(p.columns["label"] != row["label"] for p, row in zip(task.prompts, TEXTS, strict=True))
    assert 15 <= flipped <= 45  # 100 draws of probability 0.3, three standard deviations either way
    words = [pair for p, row in zip(task.prompts, TEXTS, strict=True) for pair in _words(p.content, row["text"])]
    assert all(sorted(new) == sorted(old) for new, old in words)
    long = [new != old for new, old in words if len(set(old)) > 2]
    assert 0.35 <= sum(long) / len(long) <= 0.6  # half of them, but for swaps of equal letters
    assert [p.content for p in task.eval_prompts] == [row["text"] for row in TEXTS]
    assert labelled(texts, label_noise=0.3, seed=3).prompts[0].columns == task.prompts[0].columns


def test_noisy_tags_are_still_bio(tmp_path):
    """A flipped tag may leave an I-X without its B-X, which a tagger could neither sample nor learn."""
    task = labelled(write(tmp_path / "s.jsonl", SENTENCES * 50), text="tokens", label="tags", label_noise=0.5)
    rows = [prompt.columns["tags"] for prompt in task.prompts]
    assert any(row not in [sentence["tags"] for sentence in SENTENCES] for row in rows)
    for row in rows:
        for before, tag in zip(["O", *row], row, strict=False):
            assert not tag.startswith("I-") or before in (f"B-{tag[2:]}", tag)


def test_words_change_places_with_their_tags(tmp_path):
    """Rate 1 exchanges every pair; an I-X moved before its B-X becomes a B-X; rate 0.2 moves a fifth of pairs."""
    task = labelled(write(tmp_path / "s.jsonl", SENTENCES), text="tokens", label="tags", word_noise=1.0)
    assert task.prompts[0].columns == {"words": ["Lee", "Ann", "ran"], "tags": ["B-PER", "B-PER", "O"]}
    assert task.prompts[0].content == "Lee Ann ran"
    assert task.prompts[1].columns == {"words": ["Rome", "In"], "tags": ["B-LOC", "O"]}
    text = " ".join(map(str, range(10_000)))
    source = write(tmp_path / "t.jsonl", [{"text": text, "label": "a"}])
    words = labelled(source, word_noise=0.2).prompts[0].content.split()
    assert sorted(words, key=int) == text.split()
    moved = sum(word != str(place) for place, word in enumerate(words)) / 2
    # a renewal process: a pair takes two places, any other draw one, so 10,000 / 1.2 draws of probability 0.2
    assert moved == pytest.approx(10_000 / 1.2 * 0.2, abs=5 * (10_000 / 1.2 * 0.2 * 0.8) ** 0.5)


def _words(new, old):
    return zip(new.split(" "), old.split(" "), strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "labelled"}, "needs num_labelled"),
        ({"part": "half", "num_labelled": 3}, "must be 'all', 'labelled' or 'unlabelled'"),
        ({"label_noise": 1.5}, "label_noise is 1.5"),
        ({"lables": ["a"]}, "has no option 'lables'; did you mean 'labels'"),
    ],
)
def test_options_at_odds_are_refused(texts, options, message):
    with pytest.raises(RecipeError, match=message):
        load_task("labelled", {"path": str(texts), **options})


def test_environment_variables_in_a_path_are_filled_in(texts, monkeypatch):
    monkeypatch.setenv("SOME_DATA", str(texts.parent))
    assert len(labelled("$SOME_DATA/train.jsonl").prompts) == 100
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(DataError, match="SOME_DATA is not set"):
        labelled("$SOME_DATA/train.jsonl")
