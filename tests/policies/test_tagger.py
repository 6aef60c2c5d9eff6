"""The tagger policy's own ways: first pieces of words, and the BIO constraint."""

import itertools

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForTokenClassification, AutoTokenizer

from upslope.engines.single_pass import SinglePassEngine
from upslope.errors import DataError, ModelError
from upslope.policies.tagger import bio_transitions
from upslope.records import Prompt, collate

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def legal(tags):
    """The definition, written anew: every I-X stands right after a B-X or an I-X."""
    return all(
        t[0] != "I" or (i > 0 and tags[i - 1][0] in "BI" and tags[i - 1][1:] == t[1:]) for i, t in enumerate(tags)
    )


@pytest.fixture
def policy(make_policy):
    policy = make_policy("tiny-bert", kind="tagger", labels=TAGS)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return policy


def test_probabilities_of_legal_sequences_sum_to_one(policy, sampling):
    """All 125 tag sequences of three words: the illegal have probability 0, the legal together 1."""
    blank = policy.blank(policy.encode(Prompt(0, "ab cde f")))
    sequences = list(itertools.product(range(5), repeat=3))
    rows = [policy.filled(blank, actions).replace(group=i) for i, actions in enumerate(sequences)]
    batch = collate(rows)[0]
    good = torch.tensor([legal([TAGS[a] for a in actions]) for actions in sequences])
    assert 20 < int(good.sum()) < 125
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, None)):
        with torch.no_grad():
            logprobs = policy.score(batch, sampling=sampling(temperature, top_k)).logprobs.double().view(-1, 3).sum(1)
        assert torch.equal(logprobs == float("-inf"), ~good)
        assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-6)
        assert float(logprobs[good].std()) > 0.1


def test_what_is_sampled_is_legal(policy, sampling):
    """500 rows of 9 words at a high temperature, and greedy ones: none breaks the constraint."""
    engine = SinglePassEngine()
    engine.load(policy, version=0)
    prompts = [policy.encode(Prompt(i, " ".join(f"w{i}{j}" for j in range(9)))) for i in range(10)]
    rollouts = engine.sample(prompts, group_size=50, sampling=sampling(5.0), seed=1)
    rollouts += engine.sample(prompts, group_size=1, sampling=sampling(0.0), seed=1)
    assert all(legal(r.text.split()) for r in rollouts)
    inside = sum(tag.startswith("I-") for r in rollouts for tag in r.text.split())
    assert inside > 200


def test_transitions_are_the_definition():
    for labels in (TAGS, ("B-X", "I-X", "O"), ("O", "B-A", "I-A", "B-AB", "I-AB")):
        allowed = bio_transitions(labels)
        for i, label in enumerate(labels):
            assert bool(allowed[len(labels), i]) == legal([label])
            for j, before in enumerate(labels):
                assert bool(allowed[j, i]) == (
                    legal([label]) or legal(["B" + label[1:], label][-1:]) or legal_pair(before, label)
                )


def legal_pair(before, label):
    """Whether label may follow before, where that one stands in an entity that goes on if need be."""
    return label[0] != "I" or (before[0] in "BI" and before[1:] == label[1:])


def test_schemes_without_beginnings_are_free():
    """Where no tag is a B-X (IO, and part-of-speech tags), I-X begins entities too."""
    assert bio_transitions(("O", "I-PER", "I-LOC")) is None
    assert bio_transitions(("NOUN", "VERB", "")) is None
    mixed = bio_transitions(("O", "I-PER", "B-LOC", "I-LOC"))
    assert mixed[:, 1].all()
    assert mixed[:, 3].tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (["I-PER", "O", "O"], "'I-PER' at its beginning"),
        (["O", "I-LOC", "O"], "'I-LOC' after 'O'"),
        (["B-PER", "I-LOC", "O"], "'I-LOC' after 'B-PER'"),
    ],
)
def test_demonstrations_that_no_sampling_could_give_are_refused(policy, tags, said):
    """Their log-probability would be -inf."""
    with pytest.raises(DataError, match=rf"prompt 7 has {said}, but I- goes on with an entity that B- began"):
        policy.demonstration(Prompt(7, "ab cde f"), tags)
    assert policy.demonstration(Prompt(7, "ab cde f"), ["B-PER", "I-PER", "O"]).actions == (1, 2, 0)


def test_words_come_from_the_column_or_the_text(policy):
    """Words of the column may hold blanks; without it, blank space of any kind separates words."""
    ids = policy.tokenizer
    spaced = policy.encode(Prompt(0, "  ab \t cde\nf "))
    assert policy.positions(spaced) == (0, 3, 7)
    column = policy.encode(Prompt(0, "ignored", columns={"words": ["New York", "is"]}))
    assert column.tokens == tuple(ids("New York is")["input_ids"])
    assert policy.positions(column) == (0, 9)
    assert len(policy.blank(column).actions) == 2


def test_unusable_prompts_are_refused(make_policy, policy):
    with pytest.raises(DataError, match="prompt 3 has no words"):
        policy.encode(Prompt(3, "  "))
    short = make_policy("tiny-bert", kind="tagger", labels=TAGS, max_length=6)
    with pytest.raises(DataError, match=r"prompt 3 has 8 tokens, which exceeds the 6 that are read \(model.max_length"):
        short.encode(Prompt(3, "abcd efg"))
    with pytest.raises(DataError, match=r"prompt 3 has the word '', of which the tokenizer leaves no token"):
        policy.positions(Prompt(3, "x", columns={"words": ["a", ""]}))


def test_tags_stand_in_the_saved_model_and_others_are_refused(make_policy, policy, tmp_path):
    policy.save(tmp_path)
    assert make_policy(tmp_path, kind="tagger").labels == TAGS
    assert make_policy(tmp_path, kind="tagger").transitions is not None
    with pytest.raises(ModelError, match="was trained to choose between"):
        make_policy(tmp_path, kind="tagger", labels=TAGS[:3])
    with pytest.raises(ModelError, match="has no head for labels, and the task names no labels"):
        make_policy(tmp_path, kind="classifier")


WORDS = [
    "EU",
    "rejects",
    "unbelievability",
    "U.S.",
    "don't",
    "(",
    "...",
    "☃",
    "北京",
    "北京市",
    "Müller",
    "a\u0301",
    "4,500.75",
]


@pytest.fixture(scope="module")
def real(minilm, make_policy):
    return make_policy("minilm-l6", kind="tagger", labels=TAGS)


def test_first_pieces_on_a_real_tokenizer(real):
    """Each word's place is where its own pieces begin, as tokenising it alone says: several pieces, unknown
    characters, punctuation, Chinese characters, accents."""
    prompt = real.encode(Prompt(0, "x", columns={"words": WORDS}))
    tokenizer = real.tokenizer
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
    place, expected = 1, []
    for word in pieces:
        expected.append(place)
        assert prompt.tokens[place : place + len(word)] == tuple(word)
        place += len(word)
    assert real.positions(prompt) == tuple(expected)
    assert place == len(prompt.tokens) - 1
    lengths = dict(zip(WORDS, map(len, pieces), strict=True))
    assert lengths["unbelievability"] > 2
    assert lengths["don't"] == 3
    assert lengths["北京市"] == 3
    assert pieces[WORDS.index("☃")] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("word", ["\u200b", "\x07", "\u0301"])
def test_words_that_the_tokenizer_deletes_are_refused(real, word):
    """Zero-width and control characters, and a lone accent, leave nothing to decide at."""
    with pytest.raises(DataError, match=r"prompt 5 has the word .*, of which the tokenizer leaves no token"):
        real.encode(Prompt(5, "x", columns={"words": ["fine", word, "too"]}))


def test_real_tagger_is_transformers_own(real, sampling, tmp_path):
    """Scores of two padded sentences are those of Transformers' forward of each, read at the first pieces."""
    sentences = [["Angela", "Merkel", "visits", "Peking"], WORDS]
    rows = []
    for i, words in enumerate(sentences):
        blank = real.blank(real.encode(Prompt(i, "x", columns={"words": words})))
        rows.append(real.filled(blank, [1, 2, *[0] * (len(words) - 2)]))
    real.save(tmp_path)
    model, tokenizer = (
        AutoModelForTokenClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    with torch.no_grad():
        scores = collate(rows)[0].split_rows(real.score(collate(rows)[0], sampling=sampling()).logprobs)
        for words, row, found in zip(sentences, rows, scores, strict=True):
            encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
            assert tuple(encoded["input_ids"][0].tolist()) == row.tokens
            first = [encoded.word_ids().index(i) for i in range(len(words))]
            assert first == list(row.positions)
            logits, before = model(**encoded).logits[0, first], "O"
            for place, action in enumerate(row.actions):
                allowed = [i for i, tag in enumerate(TAGS) if legal_pair(before, tag)]
                expected = logits[place, action] - logits[place, allowed].logsumexp(0)
                assert_close(found[place], expected, rtol=0, atol=1e-5)
                before = TAGS[action]


@pytest.mark.parametrize("folder", ["smollm2-135m-instruct"])
def test_first_pieces_of_a_byte_level_tokenizer(folder):
    """Pieces of a byte-level tokenizer begin with the blank before their word: the place is still the word's own."""
    from upslope.cache import cache_folder
    from upslope.policies.embedded import EMBEDDED
    from upslope.policies.tagger import _first_pieces

    stored = cache_folder() / EMBEDDED[folder].tag
    if not (stored / "tokenizer.json").is_file():
        pytest.skip(f"{folder} is not in the cache; fetch it with: upslope fetch {folder}")
    tokenizer = AutoTokenizer.from_pretrained(stored)
    encoded = tokenizer(" ".join(WORDS), return_offsets_mapping=True)
    found = _first_pieces(Prompt(0, "x"), WORDS, encoded["offset_mapping"])
    start = 0
    for word, place in zip(WORDS, found, strict=True):
        begin, end = encoded["offset_mapping"][place]
        assert begin in (start, start - 1)
        assert end > start
        assert place == 0 or encoded["offset_mapping"][place - 1][1] <= start
        start += len(word) + 1
