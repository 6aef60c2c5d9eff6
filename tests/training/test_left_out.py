"""Prompts that the policy cannot read: named by file and line, or left out and counted as the recipe asks."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack

import pytest
from bandit import bandit_session, pull

import upslope
from upslope.errors import DataError
from upslope.training.gather import gather


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


ROWS = [{"words": ["ab", "c"], "tags": ["O", "B-X"]}, {"words": ["abcdefgh"], "tags": ["O"]}] * 2
QUICK = {
    "steps": 1,
    "prompts_per_step": 2,
    "isolation": "none",
    "trackers": [],
    "checkpoint_every_steps": "none",
    "kind": "tagger",
    "max_length": 6,
    "model": "tiny-bert",
}


def train(tmp_path, name, *, strict, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = {"path": str(file), "eval": str(file), "text": "words", "label": "tags", "strict": strict}
    given = {"task": "labelled", "task.options": options, "run": tmp_path / name, "every_steps": 1}
    return upslope.train(**QUICK, **given, **settings)


@pytest.mark.parametrize("how", [{"algorithm": "reinforce"}, {"method": "supervised", "completion": "tags"}])
def test_a_row_that_is_too_long_is_named_or_counted(tmp_path, how):
    """Two of four training rows and two of four held-out ones are longer than the model reads."""
    with pytest.raises(DataError, match=r"prompt 1 \(.*rows.jsonl:2\) has 8 tokens, which exceeds the 6"):
        train(tmp_path, "strict", strict=True, **how)
    assert not (tmp_path / "strict").exists()
    run = train(tmp_path, "lenient", strict=False, **how)
    assert next(run.events("skipped_lines"))["lines"] == {"what the model cannot read or write": 4}
    assert {event["prompts"] for event in run.events("evaluate")} == {2}
    measured = upslope.evaluate(run)
    assert len(measured.measurement.values) == 2
    assert measured.as_dict()["skipped"] == {"what the model cannot read or write": 2}


def test_texts_that_are_cut_are_counted_in_the_report(tmp_path):
    task = upslope.Task(
        prompts=["abcdefgh", "ab"], eval_prompts=["abcdefghi", "a", "bcdefghij"], reward=len_of, labels=("x", "y")
    )
    settings = {**QUICK, "kind": "classifier", "algorithm": "reinforce", "task": task, "run": tmp_path / "run"}
    with pytest.warns(UserWarning, match="3 prompts exceed what the model reads"):
        run = upslope.train(**settings)
    assert upslope.evaluate(run, task).as_dict()["cut"] == 2


def len_of(completion):
    return float(len(completion))


def test_reward_noise_is_gaussian_decided_by_the_step_and_said(tmp_path, stack):
    """800 scores against those without noise: mean 0 and the deviation asked for, within 5 standard errors."""
    settings = {"algorithm.preset": "rloo", "group_size": 100, "prompts_per_step": 8, "reward.noise_std": 0.5}
    session = bandit_session(tmp_path / "run", settings, stack=stack)
    first, again, other = (gather(session, step=step).rollouts for step in (1, 1, 2))
    noise = [rollout.score - pull(rollout.text) for rollout in first]
    assert len(noise) == 800
    mean = sum(noise) / 800
    deviation = math.sqrt(sum((value - mean) ** 2 for value in noise) / 799)
    assert abs(mean) < 5 * 0.5 / math.sqrt(800)
    assert abs(deviation - 0.5) < 5 * 0.5 / math.sqrt(1600)
    assert noise == pytest.approx([rollout.metrics["reward_noise"] for rollout in first])
    assert [rollout.score for rollout in first] == [rollout.score for rollout in again]
    assert noise[:20] != [rollout.score - pull(rollout.text) for rollout in other][:20]
