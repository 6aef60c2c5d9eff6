"""Preference learning: each loss against the model's own forward, the cached reference, pairs of every source."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import upslope
from upslope.errors import DataError
from upslope.recipe import Recipe
from upslope.records import collate
from upslope.tasks import Task
from upslope.training import preference
from upslope.training.judged import Judged, judged_rows
from upslope.training.launch import policy_of
from upslope.training.update import accumulate

QUICK = {"trackers": [], "isolation": "none", "checkpoint_every_steps": "none"}
LOSSES = ("dpo", "robust_dpo", "ipo", "kto", "orpo")
WORDS = ("sea", "sky", "fog", "oak", "ice", "elk", "owl", "yew")


def pair(i):
    """Ending in a full stop is better than in an exclamation mark."""
    return {"prompt": f"say {WORDS[i % 8]}", "chosen": f"{WORDS[i % 8]}.", "rejected": f"{WORDS[(i + i // 8) % 8]}!"}


def recipe_of(loss, **settings):
    values = {"method": "preference", "model.name": "tiny-llama", "preference.loss": loss, "beta": 0.5, **settings}
    return Recipe.resolve({}, values)


class Moved:
    """What of a session the objective needs: a policy that has moved away from its reference."""

    def __init__(self, loss, **settings):
        self.recipe = recipe_of(loss, **settings)
        self.policy = policy_of(self.recipe)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        self.items = [
            Judged(prompt, judged_rows(self.policy, prompt))
            for prompt in Task(prompts=[pair(i) for i in range(5)]).prompts
        ]


def own_logprobs(model, row):
    """Log-probabilities of a row's actions by one plain forward."""
    logprobs = model(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
    return torch.stack([logprobs[p, a] for p, a in zip(row.positions, row.actions, strict=True)])


def expected_loss(session):
    """Each loss by its paper's formula from plain forwards; the reference is the model as it was loaded."""
    settings, model = session.recipe.preference, session.policy.model
    before = model if settings.loss == "orpo" else session.policy._reference
    terms = []
    if settings.loss == "kto":
        shifted = []
        items = session.items
        for item, other in zip(items, [*items[1:], items[0]], strict=True):
            for row in other.rows:
                prompt = item.rows[0].prompt
                moved = session.policy.row(prompt, row.actions, (0.0,) * len(row.actions), text="", stop_reason="eos")
                gap = (own_logprobs(model, moved) - own_logprobs(before, moved)).sum()
                shifted.append(gap.item())
        anchor = max(0.0, sum(shifted) / len(shifted))
    for item in session.items:
        new = [own_logprobs(model, row) for row in item.rows]
        gaps = [(mine - own_logprobs(before, row).detach()).sum() for mine, row in zip(new, item.rows, strict=True)]
        lengths = [len(row.actions) for row in item.rows]
        means = [mine.mean() for mine in new]
        odds = [mean - torch.log1p(-mean.exp()) for mean in means]
        delta = 0.5 * (gaps[0] - gaps[1])
        if settings.loss == "dpo":
            terms.append(-F.logsigmoid(delta))
        elif settings.loss == "robust_dpo":
            terms.append((-0.8 * F.logsigmoid(delta) + 0.2 * F.logsigmoid(-delta)) / 0.6)
        elif settings.loss == "ipo":
            terms.append((gaps[0] / lengths[0] - gaps[1] / lengths[1] - 1.0) ** 2)
        elif settings.loss == "orpo":
            terms.append(-means[0] - 0.5 * F.logsigmoid(odds[0] - odds[1]))
        else:
            terms += [2.0 * (1 - torch.sigmoid(0.5 * (gaps[0] - anchor))), 1 - torch.sigmoid(0.5 * (anchor - gaps[1]))]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_are_the_papers_from_plain_forwards_at_any_micro_batch(loss):
    """CHECKS 24, 29: padded, packed, shared and cut as training does, against one row at a time."""
    extra = {"kto": {"desirable_weight": 2.0}, "robust_dpo": {"flip_rate": 0.2}}
    session = Moved(loss, **extra.get(loss, {}))
    expected = expected_loss(session)
    expected.backward()
    parameters = dict(session.policy.module.named_parameters())
    wanted = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    batch, _ = collate([row for group, item in enumerate(session.items) for row in item.grouped(group)])
    if loss != "orpo":
        drawn = preference.Drawn(session.items, list(range(5)), {})
        with torch.no_grad():
            batch = batch.replace(ref_logprobs=preference._references(session, batch, drawn, {}))
    anchor = preference.reference_kl(session, session.items) if loss == "kto" else 0.0
    terms_of = preference.objective(session, batch, session.items, anchor=anchor)
    for budget in (1, 50, 10_000):
        session.policy.module.zero_grad()
        parts = accumulate(session.policy, batch, max_tokens=budget, terms_of=terms_of, whole=True)
        assert parts["loss"] == pytest.approx(expected.item(), abs=2e-5)
        for name, gradient in wanted.items():
            assert_close(parameters[name].grad, gradient, rtol=1e-3, atol=2e-5)


def test_the_reference_is_asked_once_an_item_and_is_the_model_training_began_with(monkeypatch):
    session = Moved("dpo")
    batch, _ = collate([row for group, item in enumerate(session.items) for row in item.grouped(group)])
    drawn, kept, calls = preference.Drawn(session.items, [7, 3, 9, 1, 0], {}), {}, []
    original = preference._logprobs
    monkeypatch.setattr(preference, "_logprobs", lambda *given: calls.append(1) or original(*given))
    with torch.no_grad():
        first = preference._references(session, batch, drawn, kept)
        again = preference._references(session, batch, drawn, kept)
    assert len(calls) == 5
    assert torch.equal(first, again)
    assert set(kept) == {7, 3, 9, 1, 0}
    fresh = policy_of(session.recipe)
    plain = torch.cat([own_logprobs(fresh.model, row).detach() for item in session.items for row in item.rows])
    assert_close(first, plain, rtol=0, atol=2e-5)


def trained(folder, task, **settings):
    settings = {"steps": 25, "prompts_per_step": 8, "lr": 3e-3, "beta": 0.3, **QUICK, **settings}
    return upslope.train(model="tiny-llama", task=task, run=folder, method="preference", **settings)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_learns_pairs_and_begins_where_the_reference_is(loss, tmp_path):
    task = Task(prompts=[pair(i) for i in range(40)], eval_prompts=[pair(i) for i in range(40, 56)])
    run = trained(tmp_path / "run", task, **{"preference.loss": loss}, every_steps=25)
    assert run.metrics["evaluate/metric"][25] > 0.9
    first = {"dpo": math.log(2), "robust_dpo": math.log(2), "ipo": (1 / 0.6) ** 2, "kto": 0.5}
    if loss in first:
        assert run.metrics["loss"][1] == pytest.approx(first[loss], abs=1e-4)
        assert run.metrics["evaluate/metric"][0] == 0.5  # every log-ratio is 0
    assert run.metrics["accuracy"][25] > 0.9


def test_kto_learns_from_ratings_without_partners(tmp_path):
    prompts = [
        {"prompt": p["prompt"], "completion": p[side], "rating": 5.0 if good else 1.0, "desirable": good}
        for p in map(pair, range(24))
        for side, good in (("chosen", True), ("rejected", False))
    ]
    task = Task(prompts=prompts, eval_prompts=[pair(i) for i in range(40, 56)])
    run = trained(tmp_path / "run", task, **{"preference.loss": "kto"}, every_steps=25)
    assert run.metrics["evaluate/metric"][25] > 0.9
    assert set(run.metrics["kl_reference"]) == set(range(1, 26))


def vowels(completion):
    return sum(letter in "aeiou" for letter in completion) / (1 + len(completion))


def test_online_pairs_are_judged_by_the_reward_and_raise_it(tmp_path):
    """DPO on the engine's own samples; pairs of equal scores are dropped and counted."""
    task = Task(
        prompts=[f"say {word}" for word in WORDS], reward=vowels, eval_prompts=["say oat", "say aid", "say eel"]
    )
    settings = {"pairs": "online", "max_new_tokens": 6, "every_steps": 25, "greedy": False}
    run = trained(tmp_path / "run", task, **settings)
    assert run.metrics["evaluate/metric"][25] > run.metrics["evaluate/metric"][0] + 0.1
    steps = run.history()
    assert all(step["samples"] + step["dropped"] == 16 for step in steps)
    assert sum(step.get("dropped/equal scores", 0) for step in steps) == sum(step["dropped"] for step in steps) > 0


def test_a_sample_whose_partner_failed_is_dropped_and_counted(tmp_path):
    def sometimes(completion):
        return float("nan") if "e" in completion else vowels(completion)

    task = Task(prompts=[f"say {word}" for word in WORDS], reward=sometimes)
    run = trained(tmp_path / "run", task, pairs="online", max_new_tokens=6, steps=4)
    steps = run.history()
    assert all(step["samples"] + step["dropped"] == 16 for step in steps)
    assert sum(step.get("dropped/partner failed", 0) for step in steps) > 0


def test_a_step_whose_pairs_are_all_equal_teaches_nothing_and_is_no_failure(tmp_path):
    task = Task(prompts=[f"say {word}" for word in WORDS], reward=lambda completion: 1.0)
    run = trained(tmp_path / "run", task, pairs="online", max_new_tokens=3, steps=2)
    assert [step["samples"] for step in run.history()] == [0, 0]
    assert not any(step["skipped"] for step in run.history())


def test_self_play_makes_the_demonstrations_likelier(tmp_path):
    prompts = [{"prompt": f"say {word}", "completion": word} for word in WORDS]
    task = Task(
        prompts=prompts, reward=lambda completion, completion_ids: float(completion in WORDS), eval_prompts=["say it"]
    )
    run = trained(tmp_path / "run", task, pairs="self_play", max_new_tokens=6)
    likely = run.metrics["logprob_chosen"]
    assert run.metrics["loss"][1] == pytest.approx(math.log(2), abs=1e-4)
    assert likely[25] > likely[1] + 3.0


def test_orpo_keeps_no_reference():
    policy = policy_of(recipe_of("orpo"))
    with pytest.raises(upslope.UpslopeError, match="keeps no reference"), policy.reference():
        pass


def test_data_of_another_form_is_refused(tmp_path):
    ratings = [{"prompt": "a", "completion": "b", "rating": 3.0}] * 4
    with pytest.raises(DataError, match="which needs pairs; the data has ratings or rankings"):
        trained(tmp_path / "a", Task(prompts=ratings))
    with pytest.raises(DataError, match="none says good or bad"):
        trained(tmp_path / "b", Task(prompts=ratings), **{"preference.loss": "kto"})
    rankings = [{"prompt": "a", "ranking": ["b", "c", "d"]}] * 4
    with pytest.raises(DataError, match="needs pairs or ratings; the data has rankings"):
        trained(tmp_path / "c", Task(prompts=rankings), **{"preference.loss": "kto"})


def test_ratings_that_say_neither_good_nor_bad_are_counted(tmp_path):
    rated = [{"prompt": "a", "completion": "b", "rating": r, "desirable": r > 3} for r in (1.0, 5.0)]
    task = Task(prompts=[*rated, {"prompt": "a", "completion": "c", "rating": 3.0}])
    run = trained(tmp_path / "run", task, **{"preference.loss": "kto"}, steps=1)
    (event,) = run.events("judged")
    assert (event["items"], event["neutral"]) == (2, 1)
