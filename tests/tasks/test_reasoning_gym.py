"""The adapter to reasoning-gym, on real datasets of it."""

import sys

import pytest

from upslope.errors import DependencyError, RecipeError
from upslope.rewards import Scorer
from upslope.tasks.reasoning_gym import extract_answer, reasoning_gym


@pytest.mark.parametrize(
    ("name", "config"),
    [("leg_counting", {"max_animals": 4}), ("spell_backward", {"max_word_len": 6}), ("complex_arithmetic", {})],
)
def test_real_datasets_are_scored_by_their_own_scorer(name, config, rollout_of):
    """In the worker: the dataset's own answers score 1, plain or tagged; nonsense scores less; as the scorer says."""
    gym = pytest.importorskip("reasoning_gym")
    task = reasoning_gym(name, size=6, num_eval=3, seed=3, **config)
    theirs = gym.create_dataset(name, size=9, seed=3, **config)
    rows, expected = [], []
    for prompt, entry in zip(task.prompts, theirs, strict=False):
        assert prompt.content[-1]["content"] == entry["question"]
        for text in (entry["answer"], f"So <answer> {entry['answer']}\n</answer>.", "nonsense"):
            rows.append(rollout_of(prompt, text))
            expected.append(theirs.score_answer(extract_answer(text), entry))
    with Scorer(task.terms, timeout_s=10) as scorer:
        scored = scorer.score(rows)
    assert [row.score for row in scored] == [row.metrics[task.metric_name] for row in scored] == expected
    assert expected[0::3] == expected[1::3] == [1.0] * 6
    assert max(expected[2::3]) < 1.0


def test_held_out_questions_are_new():
    """A small space of questions repeats itself: repeated questions leave the held-out part."""
    pytest.importorskip("reasoning_gym")
    task = reasoning_gym("leg_counting", size=60, num_eval=60, min_animals=1, max_animals=1, max_instances=1)
    train = {p.content[0]["content"] for p in task.prompts}
    assert not train & {p.content[0]["content"] for p in task.eval_prompts}
    assert 0 < len(task.eval_prompts) < 60


def test_extract_answer():
    texts = [" 5 ", "<answer>5</answer>", "<answer>4</answer> no, <answer>\n5 </answer>", "<answer>5"]
    assert [extract_answer(text) for text in texts] == ["5", "5", "5", "<answer>5"]


def test_mistakes_are_named(monkeypatch):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(RecipeError, match="no dataset 'leg_count'; did you mean 'leg_counting'"):
        reasoning_gym("leg_count")
    with pytest.raises(RecipeError, match=r"'leg_counting' refuses its settings: .*max_leg"):
        reasoning_gym("leg_counting", max_leg=3)
    with pytest.raises(RecipeError, match="refuses its settings"):
        reasoning_gym("leg_counting", min_animals=5, max_animals=2)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DependencyError, match=r"upslope\[tasks\]"):
        reasoning_gym("leg_counting")
