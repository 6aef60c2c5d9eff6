"""Advantage estimators judged from end to end: runs with a critic and without, labels, and what cannot be judged."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import upslope
from upslope.errors import DataError, ModelError, RecipeError
from upslope.estimators import gae, leave_one_out, row_ids
from upslope.evaluation.arms import Arm
from upslope.evaluation.estimates import ADVANTAGE, CRITIC, VALUE, VALUES, estimate, fit, read
from upslope.evaluation.estimators import judge_estimators
from upslope.evaluation.sources import sampling_of
from upslope.policies.loading import CRITIC_FILE, load_critic
from upslope.recipe import Recipe
from upslope.rewards import Scorer
from upslope.tasks import Task

SMALL = {"num_prompts": 6, "rows": 3, "branches": 4}


def rewards():
    """Made here, so that a worker gets them by value and need not import this file."""

    def letters(completion):
        return sum(ord(letter) % 2 / (place + 1) for place, letter in enumerate(completion))

    def constant(completion):
        return 1.0

    def right(completion, label):
        return float(completion == label)

    return letters, constant, right


letters, constant, right = rewards()


def task_of(reward=letters, count=24, name="letters"):
    texts = [f"prompt {i}" for i in range(count)]
    return Task(prompts=texts[: count // 2], eval_prompts=texts[count // 2 :], reward=reward, name=name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A PPO run of two steps with a value head that says something."""
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    settings = {"steps": 2, "prompts_per_step": 4, "max_new_tokens": 5, "lr": 1e-3, "isolation": "none"}
    return upslope.train(model="tiny-llama", task=task_of(), algorithm="ppo", run=folder, trackers=[], **settings)


@pytest.fixture(scope="module")
def arm(run):
    arm = Arm(run, kind="causal", labels=(), critic="head", seed=0)
    torch.manual_seed(1)
    torch.nn.init.normal_(arm.policy.module.value_head.linear.weight)
    return arm


@pytest.fixture(scope="module")
def sampling(run):
    return sampling_of(Recipe.load(run.recipe_path))


@pytest.fixture(scope="module")
def rollouts(arm, sampling):
    task = task_of()
    with Scorer(task.terms, timeout_s=10, isolation="none") as scorer:
        return scorer.score(arm.answer(task.prompts[:8], samples=3, sampling=sampling, seed=3))


def test_the_critic_is_the_runs(run, arm, make_policy, tmp_path):
    """Weight for weight; a file of another critic, or none, is refused."""
    saved = load_file(run.model_path / CRITIC_FILE)
    policy = make_policy(run.model_path, critic="head")
    load_critic(policy, run.model_path / CRITIC_FILE)
    assert saved["value_head.linear.weight"].abs().max() > 0
    for name, parameter in policy.module.named_parameters():
        if name in saved:
            assert_close(parameter.detach(), saved[name], rtol=0, atol=0)
    save_file({"value_head.linear.weight": torch.zeros(1, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="other names or shapes"):
        load_critic(policy, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_critic(policy, tmp_path / "broken.safetensors")


def test_readings_are_the_policys_own(arm, rollouts, sampling):
    """Values and bootstrap as scoring gives them row by row; a state's actions have mean 0 under the policy."""
    found = read(arm.policy, arm.policy, rollouts, sampling=sampling, critic=True)
    values, ends = [], []
    with torch.no_grad():
        for row in range(found.batch.num_rows):
            scores = arm.policy.score(found.batch.select([row]), sampling=sampling, values=True)
            values.append(scores.values)
            ends.append(scores.bootstrap)
        (logits,) = arm.policy.distributions(found.batch.select([0]))
    assert_close(found.values, torch.cat(values).double(), rtol=0, atol=1e-5)
    assert_close(found.bootstrap, torch.cat(ends).double(), rtol=0, atol=1e-5)
    vectors = arm.policy.action_vectors().double()
    vectors = vectors - vectors.mean(0)
    vectors /= vectors.square().sum(1).mean().sqrt()
    expected = vectors[list(rollouts[0].actions)] - logits.double().softmax(1) @ vectors
    assert_close(found.actions[: len(expected)], expected, rtol=0, atol=1e-5)


def test_estimates_are_those_of_the_library(arm, rollouts, sampling):
    """Of the critic GAE with its own bootstrap, of fitted values without one; returns less the others' mean."""
    readings = read(arm.policy, arm.policy, rollouts, sampling=sampling, critic=True)
    heads = fit(readings, gamma=0.9, seed=1)
    found = {one.name: one for one in estimate(readings, heads, gamma=0.9, lams=[0.0, 0.95], n_step=4)}
    batch, rewards = readings.batch, readings.batch.rewards.double()
    expected = gae(rewards, readings.values, batch.num_actions, readings.bootstrap, gamma=0.9, lam=0.95)
    assert_close(found["GAE(0.95), critic"].advantages, expected, rtol=0, atol=1e-12)
    values = heads.heads[VALUE].values(heads.features(readings.states))
    expected = gae(rewards, values, batch.num_actions, torch.zeros(batch.num_rows).double(), gamma=0.9, lam=0.0)
    assert_close(found["TD residual, fitted V"].advantages, expected, rtol=0, atol=1e-12)
    scores = torch.tensor([rollout.score for rollout in rollouts], dtype=torch.float64)
    others = leave_one_out(scores, batch.group)[row_ids(batch.num_actions)]
    last = batch.num_actions.cumsum(0) - 1
    assert_close(found["return - others' mean"].advantages[last], scores - others[last], rtol=0, atol=1e-6)
    assert {one.family for one in found.values()} >= {CRITIC, VALUE, VALUES, ADVANTAGE}
    assert readings.rewards.std() > 0.01


def test_a_run_is_judged_on_every_place(run, tmp_path):
    found = judge_estimators(run, task_of(), other=task_of(name="another"), **SMALL)
    assert [place.name for place in found.places] == [
        "training prompts",
        "held-out prompts",
        "task another",
        "at temperature 1.5",
    ]
    assert found.reference == "GAE(0.95), critic"
    assert not found.absent
    for place in found.places:
        assert place.num_decisions == 18
        assert place.row_tokens > 18
        names = [one.name for one in place.estimators]
        assert len(set(names)) == len(names) == 22
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["shown"] == "held-out prompts"
    text = found.document().markdown()
    assert "## On held-out prompts" in text
    assert text.count("| GAE(0.95), critic |") == 4
    again = judge_estimators(run, task_of(), other=task_of(name="another"), **SMALL)
    figures = [[[one.agreement for one in place.estimators] for place in result.places] for result in (found, again)]
    assert figures[0] == figures[1], "the same seed gives the same figures"


def test_a_model_without_a_critic_and_a_second_model(tmp_path, make_policy):
    """The critic's rows are named absent; rows of another model of the same tokenizer are the shifted ones."""
    make_policy("tiny-llama", seed=1).save(tmp_path / "one")
    make_policy("tiny-llama", seed=2).save(tmp_path / "two")
    found = judge_estimators(
        tmp_path / "one", task_of(), shifted=tmp_path / "two", max_new_tokens=4, temperature=1.0, **SMALL
    )
    assert found.absent == {CRITIC: "the model is no run"}
    assert found.reference == "return - others' mean"
    assert found.places[-1].name == f"rows of {tmp_path / 'two'}"
    assert not [one for place in found.places for one in place.estimators if one.family == CRITIC]
    other = make_policy("tiny-llama", seed=3)
    other.tokenizer.add_tokens(["<other>"])
    other.model.resize_token_embeddings(len(other.tokenizer))
    other.save(tmp_path / "other")
    with pytest.raises(RecipeError, match="another tokenizer"):
        judge_estimators(tmp_path / "one", task_of(), shifted=tmp_path / "other", max_new_tokens=4, **SMALL)


def test_few_training_prompts_do_not_shorten_the_other_places(run):
    task = task_of()
    few = Task(prompts=list(task.prompts)[:3], eval_prompts=list(task.eval_prompts), reward=letters, name="few")
    found = judge_estimators(run, few, **SMALL)
    assert [place.num_prompts for place in found.places] == [3, 6, 6]


def test_labels_are_judged_without_a_branch(tmp_path):
    """One label a row: its advantage is exact, and GAE, Monte Carlo and the TD residual are one and the same."""
    prompts = [{"prompt": f"text {i}", "label": ("good", "bad")[i % 2]} for i in range(24)]
    task = Task(prompts=prompts[:12], eval_prompts=prompts[12:], reward=right, labels=("good", "bad"), name="labels")
    settings = {"steps": 1, "prompts_per_step": 4, "model.kind": "classifier", "isolation": "none", "trackers": []}
    run = upslope.train(model="tiny-bert", task=task, algorithm="grpo", run=tmp_path / "run", **settings)
    found = judge_estimators(run, task, **SMALL)
    assert found.absent == {CRITIC: "the run trained no critic"}
    for place in found.places:
        assert (place.branch_tokens, place.noise, place.reliability) == (0, 0.0, 1.0)
        named = {one.name: one.agreement.error for one in place.estimators}
        one, other = (named[f"{name}, fitted V"] for name in ("TD residual", "Monte Carlo - V"))
        assert one.estimate == pytest.approx(other.estimate, abs=1e-12)
        assert math.isfinite(one.estimate)


def test_what_leaves_nothing_to_judge_is_one_sentence(run):
    with pytest.raises(DataError, match="every branch earned the same, so that every advantage is 0"):
        judge_estimators(run, task_of(constant), **SMALL)
    with pytest.raises(DataError, match="heads are fitted on the rows of 2 training prompts at least, but only 1"):
        judge_estimators(run, task_of(count=2), **SMALL)
    for settings, message in (
        ({"temperature": 0.0}, "at temperature 0"),
        ({"branches": 5}, "branches is 5; it must be even"),
        ({"rows": 1}, "rows is 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            judge_estimators(run, task_of(), **{**SMALL, **settings})


def test_one_held_out_prompt_is_said_to_be_too_few(run):
    task = task_of()
    few = Task(prompts=list(task.prompts), eval_prompts=list(task.eval_prompts)[:1], reward=letters, name="few")
    found = judge_estimators(run, few, **SMALL)
    assert found.places[1].problem == "there is one prompt only, and an interval needs two"
    assert "held-out prompts: there is one prompt only" in found.document().markdown()
    assert str(found).startswith(("least error on training prompts", "nothing can be said of the error on training"))
