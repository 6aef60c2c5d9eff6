"""The dry step against the first step of a real run, and what it leaves: nothing."""

import dataclasses
import time

import pytest
import torch

from upslope.doctor.examine import examine_step
from upslope.doctor.findings import Findings
from upslope.doctor.step import dry_step, weights_kept
from upslope.engines.local import LocalEngine
from upslope.recipe import Recipe
from upslope.records import collate
from upslope.tasks import Task
from upslope.training.launch import launch, policy_of
from upslope.training.optimizer import trainable

SAME = (
    "reward",
    "reward_std",
    "length",
    "terminated",
    "samples",
    "entropy",
    "loss_policy",
    "grad_norm",
    "lr",
    "updates",
)


def recipe_of(preset="ppo", **settings):
    small = {"model.name": "tiny-llama", "prompts_per_step": 4, "group_size": 3, "max_new_tokens": 6, "steps": 1}
    return Recipe.resolve({"algorithm": {"preset": preset}}, {"isolation": "none", **small, **settings})


def letters(completion):
    return float(sum(letter.isalpha() for letter in completion))


def task_of(reward=letters):
    return Task(prompts=[f"prompt {i}" for i in range(12)], reward=reward)


def taken(recipe, task, *, prompts=4):
    policy = policy_of(recipe)
    before = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    engine = LocalEngine(**recipe.engine.model_dump())
    engine.load(policy, version=0)
    step = dry_step(recipe, policy, engine, task, prompts=prompts)
    for name, parameter in policy.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None, name
    return step


def findings_of(recipe, step):
    findings = Findings()
    examine_step(findings, recipe, step)
    return {finding.check: finding for finding in findings}


@pytest.mark.parametrize(
    ("preset", "settings"),
    [("ppo", {}), ("ppo", {"model.lora.r": 2}), ("grpo", {"minibatches": 2}), ("a2c", {"critic": "separate"})],
)
def test_a_dry_step_is_the_first_step_of_a_run_and_leaves_no_trace(preset, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, task = recipe_of(preset, **settings), task_of()
    step = taken(recipe, task)
    assert list(tmp_path.iterdir()) == []
    run = launch(Recipe.resolve(recipe.model_dump(), {"folder": "run"}), task=task)
    (first,) = run.events("train")
    assert {name: step.metrics[name] for name in SAME} == {name: first[name] for name in SAME}


def test_policy_kl_is_that_of_the_whole_step(tmp_path, sampling):
    """k3 = E[r - 1 - log r] over the sampled tokens, by the model that a real run saves after its first step."""
    recipe, task = recipe_of("dr_grpo", lr=1e-3, warmup_steps=0), task_of()
    step = taken(recipe, task)
    run = launch(Recipe.resolve(recipe.model_dump(), {"folder": str(tmp_path / "run")}), task=task)
    batch, _ = collate(step.rollouts)
    after = policy_of(recipe_of("dr_grpo", **{"model.name": str(run.model_path)}))
    before = batch.engine_logprobs
    with torch.no_grad():
        log_ratio = after.score(batch, sampling=sampling()).logprobs - before
    assert step.metrics["policy_kl"] == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).mean()), rel=1e-2)
    assert step.metrics["policy_kl"] > 1e-3
    steep = dataclasses.replace(step, metrics={**step.metrics, "policy_kl": 0.06})
    assert findings_of(recipe, steep)["high_lr"].level == "warning"
    gentle = dataclasses.replace(step, metrics={**step.metrics, "policy_kl": 0.04})
    assert "high_lr" not in findings_of(recipe, gentle)


def test_weights_are_put_back_after_an_error_as_well():
    policy = policy_of(recipe_of())
    before = {name: p.detach().clone() for name, p in trainable(policy.module).items()}

    def fail():
        with weights_kept(policy.module), torch.no_grad():
            for parameter in trainable(policy.module).values():
                parameter.add_(1.0)
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    for name, parameter in trainable(policy.module).items():
        assert torch.equal(parameter, before[name])


def test_engine_and_trainer_agree_and_a_gap_is_an_error():
    recipe = recipe_of("grpo")
    step = taken(recipe, task_of())
    found = findings_of(recipe, step)["parity"]
    assert found.level == "ok"
    assert found.values["largest"] == float(step.gap.abs().max()) < 1e-4
    skewed = dataclasses.replace(step, gap=step.gap + 0.01)
    found = findings_of(recipe, skewed)["parity"]
    assert found.level == "error"
    assert found.values["mean"] == pytest.approx(0.01, rel=1e-3)
    half = recipe_of("grpo", dtype="bfloat16")
    assert findings_of(half, skewed)["parity"].level == "ok"


def equal(completion):
    return 1.0


def broken(completion):
    raise ValueError("no such thing")


def fickle(completion):
    if sum(map(ord, completion)) % 2:
        raise ValueError("odd")
    return float(len(completion))


def slow(completion):
    time.sleep(0.06)
    return float(len(completion))


@pytest.mark.parametrize(
    ("reward", "check", "level"),
    [
        (equal, "equal_rewards", "error"),
        (broken, "dry step", "error"),
        (fickle, "dropped_samples", "error"),
        (slow, "slow_reward", "warning"),
    ],
)
def test_what_is_wrong_with_a_reward_is_named_with_its_mend(reward, check, level):
    recipe = recipe_of("grpo")
    found = findings_of(recipe, taken(recipe, task_of(reward)))
    assert found[check].level == level
    assert found[check].mend
    healthy = findings_of(recipe, taken(recipe, task_of()))
    assert healthy.get(check) is None or healthy[check].level == "ok"


def test_rows_that_never_end_are_named():
    recipe = recipe_of("grpo")
    step = taken(recipe, task_of())
    cut = dataclasses.replace(step, metrics={**step.metrics, "terminated": 0.0})
    assert {"never_ends", "truncation"} <= findings_of(recipe, cut).keys()
    ended = dataclasses.replace(step, metrics={**step.metrics, "terminated": 0.9})
    assert not {"never_ends", "truncation"} & findings_of(recipe, ended).keys()
