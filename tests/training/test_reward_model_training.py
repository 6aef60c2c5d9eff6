"""Reward models learn from every form of judgement, whatever the micro-batch, and are measured on held-out pairs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import upslope
from upslope.errors import DataError, RecipeError
from upslope.evaluation.judgements import pair_report
from upslope.evaluation.labels import calibration
from upslope.recipe import Recipe
from upslope.records import collate
from upslope.settings import RewardModelSettings
from upslope.tasks import Task
from upslope.training.judged import Judged, judged_rows
from upslope.training.launch import policy_of
from upslope.training.reward_model import objective_of
from upslope.training.update import accumulate, pieces

GOOD, BAD = "aeiou", "bcdfg"
QUICK = {"trackers": [], "isolation": "none", "checkpoint_every_steps": "none"}


def text(seed, letters):
    return "".join(letters[(seed * (place + 3) + place) % 5] for place in range(3 + seed % 4))


def pair(seed):
    """Vowels are better than consonants; lengths say nothing."""
    return {"prompt": f"w{seed % 3}", "chosen": text(seed, GOOD), "rejected": text(seed + 1, BAD)}


def ranking(seed):
    return {"prompt": "w", "ranking": [text(seed, GOOD), text(seed, "abecd"), text(seed, BAD)]}


def rated(seed):
    letters = (BAD, "abecd", GOOD)[seed % 3]
    return {"prompt": "w", "completion": text(seed, letters), "rating": float(seed % 3)}


FORMS = {"bradley_terry": pair, "plackett_luce": ranking, "regression": rated, "ordinal": rated}


def trained(folder, loss, *, model="tiny-bert", steps=30, **settings):
    task = Task(prompts=[FORMS[loss](i) for i in range(60)], eval_prompts=[FORMS[loss](i) for i in range(100, 160)])
    settings = {"method": "reward_model", "reward_model.loss": loss, "every_steps": steps, **settings}
    settings = {"steps": steps, "prompts_per_step": 8, "lr": 2e-3, **QUICK, **settings}
    return upslope.train(model=model, task=task, run=folder, **settings)


@pytest.mark.parametrize("loss", FORMS)
def test_each_form_of_judgement_is_learned(loss, tmp_path):
    run = trained(tmp_path / "run", loss)
    accuracy = run.metrics["evaluate/metric"]
    assert accuracy[30] > 0.95
    assert accuracy[0] < accuracy[30]
    (_, report) = run.events("calibration")
    assert report["accuracy_low"] <= report["accuracy"] <= report["accuracy_high"]
    assert report["accuracy"] > report["length_baseline"]
    assert sum(count for *_, count in report["bins"]) == report["pairs"]
    assert (run.folder / "reliability.svg").read_text().startswith("<svg")
    assert json.loads((run.model_path / "config.json").read_text())["id2label"] == {"0": "reward"}


def test_a_causal_models_scores_are_centred_and_pay_as_a_reward(tmp_path):
    """Trained from a decoder; then `model:RUN` is the reward of a policy-gradient run, which raises it."""
    run = trained(tmp_path / "rm", "bradley_terry", model="tiny-llama", centering_coef=1.0)
    assert run.metrics["evaluate/metric"][30] > 0.95
    assert abs(run.metrics["score_mean"][30]) < 0.3 * run.metrics["score_gap"][30]
    settings = {"algorithm": "grpo", "group_size": 4, "steps": 30, "prompts_per_step": 4, "max_new_tokens": 6}
    recipe = Recipe.resolve({"reward": f"model:{run.folder}"})
    rl = upslope.train(
        model="tiny-llama",
        task=Task(prompts=["w0", "w1"]),
        recipe=recipe,
        run=tmp_path / "rl",
        lr=3e-3,
        **settings,
        **QUICK,
    )
    rewards = list(rl.metrics["reward/reward_model"].values())
    assert sum(rewards[-10:]) > sum(rewards[:10])
    with pytest.raises(upslope.UpslopeError, match="holds a reward model, which writes nothing"):
        upslope.evaluate(run)


def items_of(policy, form, count=5):
    task = Task(prompts=[form(i) for i in range(count)])
    return [Judged(prompt, judged_rows(policy, prompt)) for prompt in task.prompts]


@pytest.mark.parametrize("loss", FORMS)
def test_the_micro_batch_changes_no_gradient_and_keeps_items_whole(loss):
    """CHECKS 29: one item at a time, some, or all."""
    policy = policy_of(Recipe.resolve({"method": "reward_model", "model": {"name": "tiny-llama"}}))
    items = items_of(policy, FORMS[loss])
    objective = objective_of(policy, RewardModelSettings(loss=loss), items)(items)
    batch, _ = collate([row for group, item in enumerate(items) for row in item.grouped(group)])
    gradients, sizes = [], []
    some = {"bradley_terry": 40, "plackett_luce": 60}.get(loss, 20)
    for budget in (1, some, 10_000):
        cut = list(pieces(policy, batch, max_tokens=budget, whole=True))
        sizes.append(len(cut))
        for rows, _, piece in cut:
            for group in piece.group.unique().tolist():
                assert rows[piece.group == group].tolist() == (batch.group == group).nonzero()[:, 0].tolist()
        policy.module.zero_grad()
        parts = accumulate(policy, batch, max_tokens=budget, terms_of=objective, whole=True)
        gradients.append((parts["loss"], {n: p.grad.clone() for n, p in policy.module.named_parameters()}))
    assert sizes[0] == 5 > sizes[1] > sizes[2] == 1
    for value, gradient in gradients[:2]:
        assert value == pytest.approx(gradients[2][0], abs=1e-5)
        for name, own in gradient.items():
            assert_close(own, gradients[2][1][name], rtol=0, atol=1e-5)


def test_margins_ask_for_a_larger_gap():
    policy = policy_of(Recipe.resolve({"method": "reward_model", "model": {"name": "tiny-bert"}}))
    losses = []
    for margin in (0.0, 2.0):
        items = items_of(policy, lambda i, margin=margin: pair(i) | {"margin": margin})
        batch, _ = collate([row for group, item in enumerate(items) for row in item.grouped(group)])
        settings = RewardModelSettings(centering_coef=0.0)
        with torch.no_grad():
            losses.append(objective_of(policy, settings, items)(items)(batch, torch.empty(0)))
            chosen, rejected = policy.scores(batch).view(-1, 2).unbind(1)
        expected = -torch.nn.functional.logsigmoid(chosen - rejected - margin).mean()
        assert_close(losses[-1].loss, expected, rtol=0, atol=1e-6)
    assert losses[1].loss > losses[0].loss


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path):
    prompts = [pair(1), pair(2), {**pair(3), "chosen": "a" * 90}, {**pair(1), "chosen": "no", "rejected": "yes"}]
    prompts += [{**pair(1), "chosen": "yes", "rejected": "no"}]
    settings = {"method": "reward_model", "max_length": 40, "steps": 1, "prompts_per_step": 2, **QUICK}
    run = upslope.train(model="tiny-llama", task=Task(prompts=prompts), run=tmp_path / "run", **settings)
    (event,) = run.events("judged")
    assert (event["items"], event["too_long"], event["contradictory"]) == (4, 1, 2)


@pytest.mark.parametrize(
    ("loss", "form", "message"),
    [
        ("bradley_terry", rated, "but the data has ratings; take 'regression'"),
        ("bradley_terry", ranking, "which needs pairs; for rankings take 'plackett_luce'"),
        ("ordinal", pair, "which needs ratings, not pairs or rankings"),
        ("regression", lambda i: rated(3 * i), "all ratings are 0, so there is nothing to learn"),
        ("bradley_terry", lambda i: {"prompt": f"{i}", "completion": "a"}, "prompt 0 has no judged completions"),
    ],
)
def test_data_of_another_form_is_refused(loss, form, message, tmp_path):
    task = Task(prompts=[form(i) for i in range(4)])
    settings = {"method": "reward_model", "reward_model.loss": loss, "steps": 1, **QUICK}
    with pytest.raises(DataError, match=message):
        upslope.train(model="tiny-bert", task=task, run=tmp_path / "run", **settings)


def test_settings_of_another_method_are_refused():
    with pytest.raises(RecipeError, match=r"preference.beta is set, but method is 'policy_gradient'.*kl_coef"):
        Recipe.resolve({}, {"beta": 0.04})
    with pytest.raises(RecipeError, match="a reward model is made of a 'causal' or 'classifier' one"):
        Recipe.resolve({"method": "reward_model", "model": {"kind": "tagger"}})
    for method, name, value in [
        ("preference", "flip_rate", 0.1),
        ("preference", "preferred", "answer"),
        ("reward_model", "centering_coef", 0.0),
        ("inverse", "level", "token"),
        ("inverse", "discount", 0.9),
    ]:
        others = {"flip_rate": {"loss": "ipo"}, "centering_coef": {"loss": "ordinal"}, "discount": {"learner": "airl"}}
        with pytest.raises(RecipeError, match=rf"{method}.{name} is set, but belongs to"):
            Recipe.resolve({"method": method, method: {name: value, **others.get(name, {})}})
    assert Recipe.resolve(Recipe.resolve({"method": "preference", "preference": {"beta": 0.2}}).model_dump())


def test_the_report_of_pairs():
    """Accuracy with ties as halves, calibration of sigmoid(|difference|), and the length rule, on four pairs."""
    report = pair_report([2.0, -1.0, 0.0, 3.0], [1.0, 5.0, -2.0, 0.0])
    assert report.accuracy.estimate == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert report.longer.estimate == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert report.length_baseline == pytest.approx(0.625)
    sure = [1 / (1 + math.exp(-abs(gap))) for gap in (2.0, -1.0, 0.0, 3.0)]

    expected = calibration(np.array(sure), np.array([True, False, False, True]))
    assert report.calibration.expected_error == pytest.approx(expected.expected_error)
    assert [b[1:] for b in report.calibration.bins] == [b[1:] for b in expected.bins]
