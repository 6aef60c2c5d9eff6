"""The loop's promises: what it drops, skips, keeps and stops for."""

from __future__ import annotations

import math
import threading
import tomllib
from contextlib import ExitStack

import pytest
import torch
from bandit import bandit_session, pull
from runs import task, vowels

import upslope
from upslope.errors import CheckpointError, DataError, DivergenceError, ModelError, RecipeError, RewardError
from upslope.policies.loading import load_model, load_policy
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.report.run import Run
from upslope.training import policy_gradient
from upslope.training.optimizer import make_optimizer
from upslope.training.schedule import learning_rate_factor
from upslope.training.seeds import data_order

QUICK = {"prompts_per_step": 3, "max_new_tokens": 5, "isolation": "none", "trackers": [], "lr": 1e-2}


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def train(tmp_path, **settings):
    given = {"model": "tiny-llama", "task": task(), "algorithm": "grpo", "run": tmp_path / "run", "steps": 2}
    return upslope.train(**{**given, **QUICK, **settings})


def test_samples_name_the_weights_that_wrote_them(tmp_path):
    """One checksum a step, another after each; an evaluation and the step after it are of the same weights."""
    run = train(tmp_path, steps=3, every_steps=1, samples_per_step=4)
    wrote = {step: {sample["weights"] for sample in run.samples(step)} for step in (1, 2, 3)}
    assert [len(weights) for weights in wrote.values()] == [1, 1, 1]
    assert len(set.union(*wrote.values())) == 3
    for step in (0, 1, 2):
        assert {sample["weights"] for sample in run.samples(step, kind="held_out")} == wrote[step + 1]


@pytest.mark.parametrize("preset", ["rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_constant_reward_changes_nothing(preset, tmp_path):
    """CHECKS 37: group or leave-one-out baseline, no KL, entropy bonus or decay: the same weights, bit for bit."""
    constant = upslope.Task(prompts=["a", "b", "c"], reward=lambda completion: 0.7)
    quiet = {"kl": "off", "kl_coef": 0.0, "dynamic_sampling": False, "overlong": "end", "seed": 3}
    run = train(tmp_path, task=constant, algorithm=preset, **quiet)
    torch.manual_seed(3)
    before = load_model("tiny-llama", dtype=torch.float32)[0].state_dict()
    after = run.load_model().state_dict()
    assert run.history()[-1]["updates"] == 1
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_paying_reward_does_change_weights(tmp_path):
    """The test above can fail."""
    run = train(tmp_path, kl="off", kl_coef=0.0, seed=3)
    torch.manual_seed(3)
    before = load_model("tiny-llama", dtype=torch.float32)[0].state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in run.load_model().state_dict().items())


@pytest.mark.parametrize(("overlong", "grows"), [("end", True), ("mask", False), ("penalty", False)])
def test_truncation_cannot_be_farmed(overlong, grows, tmp_path, stack):
    """CHECKS 36: where rows cut at eight actions pay, masking or the penalty keeps the length flat."""
    session = bandit_session(
        tmp_path / "run",
        {
            "algorithm.preset": "grpo",
            "kl": "off",
            "kl_coef": 0.0,
            "overlong": overlong,
            "overlong_buffer": 6,
            "max_new_tokens": 8,
            "lr": 0.05,
        },
        reward=lambda terminated, completion: 0.0 if terminated else 0.5,
        arms=2,
        stop=0,
        stack=stack,
    )
    policy_gradient.train(session)
    lengths = session.run.metrics["length"]
    first, last = (sum(lengths[s] for s in steps) / 10 for steps in (range(1, 11), range(51, 61)))
    assert (last > 2 * first) == grows
    assert grows or last < 1.3 * first


@pytest.mark.parametrize(("overlong", "grows"), [("end", False), ("bootstrap", True)])
def test_a_critic_does_not_pay_for_being_cut(overlong, grows, tmp_path, stack):
    """CHECKS 32, 36: every row scores 0.5; only if a value is added to the score of cut rows does length pay."""
    session = bandit_session(
        tmp_path / "run",
        {"algorithm.preset": "ppo", "kl": "off", "overlong": overlong, "max_new_tokens": 4, "epochs": 1, "lr": 0.05},
        reward=lambda completion: 0.5,
        arms=2,
        stop=0,
        stack=stack,
    )
    policy_gradient.train(session)
    lengths = session.run.metrics["length"]
    first, last = (sum(lengths[s] for s in steps) / 10 for steps in (range(1, 11), range(51, 61)))
    assert (last > 1.5 * first) == grows
    assert grows or last < 1.3 * first


@pytest.mark.parametrize("where", ["reward", "logits", "gradient", "value"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nonfinite_numbers_reach_no_parameter(where, number, tmp_path, stack):
    """Faults: five bad steps apart are counted and skipped, and the weights stay finite."""
    bad_steps = {2, 5, 7, 11, 13}
    session = bandit_session(tmp_path / "run", {"algorithm.preset": "ppo", "steps": 15}, stack=stack)
    poison(session, where, number, lambda: session.state.step + 1 in bad_steps)
    policy_gradient.train(session)
    assert all(torch.isfinite(p).all() for p in session.policy.module.parameters())
    troubled = {e["step"] for e in session.run.history() if e.get("skipped") or e["dropped"]}
    assert troubled == bad_steps
    assert all(e.get("problem") or e["dropped"] for e in session.run.history() if e["step"] in bad_steps)


@pytest.mark.parametrize("where", ["reward", "logits", "gradient", "value"])
def test_training_stops_after_bad_steps_in_a_row(where, tmp_path, stack):
    """Faults: training.max_bad_steps = 3 stops the run with an error that names the problem."""
    settings = {"algorithm.preset": "ppo", "steps": 15, "max_bad_steps": 3}
    session = bandit_session(tmp_path / "run", settings, stack=stack)
    poison(session, where, math.nan, lambda: session.state.step + 1 >= 4)
    with pytest.raises(DivergenceError, match=r"3 steps in a row.*last problem: \w+"):
        policy_gradient.train(session)
    assert session.state.step == 6
    assert all(torch.isfinite(p).all() for p in session.policy.module.parameters())


def poison(session, where, number, now):
    """Put a non-finite number in one place of the steps for which now() is true."""
    if where == "reward":
        terms = session.scorer.terms
        object.__setattr__(terms[0], "function", lambda completion: number if now() else pull(completion))
    elif where == "gradient":
        session.policy.module.logits.register_hook(lambda grad: grad + number if now() else grad)
    else:
        score = session.policy.score
        field = {"logits": "logprobs", "value": "values"}[where]

        def poisoned(batch, **options):
            scores = score(batch, **options)
            if now() and getattr(scores, field) is not None:
                object.__setattr__(scores, field, getattr(scores, field) + number)
            return scores

        session.policy.score = poisoned


def test_failed_samples_leave_baseline_and_denominator(tmp_path, stack):
    """CHECKS 31, 40: half the pulls fail; the step is that of the other half alone."""
    settings = {"algorithm.preset": "dr_grpo", "group_size": 8, "steps": 1, "prompts_per_step": 4}

    def fragile(completion):
        return 1 / 0 if completion in "34" else pull(completion)

    session = bandit_session(tmp_path / "run", settings, reward=fragile, stack=stack)
    captured = []
    session.optimizer.step = lambda: captured.append(session.policy.module.logits.grad[0].clone())
    policy_gradient.train(session)
    metrics = session.run.history()[0]
    assert metrics["dropped"] == metrics["dropped/arm: raised ZeroDivisionError"] > 0
    assert metrics["samples"] == 32 - metrics["dropped"]
    rows = session.engine.sample(
        session.encode(session.task.prompts * 4),
        group_size=8,
        sampling=session.sampling,
        seed=session.seed("rollout", 1, 0),
    )
    scored = [row for row in rows if row.text not in "34"]
    expected = torch.zeros(5)
    for row in scored:
        peers = [pull(other.text) for other in scored if other.group == row.group]
        expected -= (pull(row.text) - sum(peers) / len(peers)) * (torch.eye(5)[row.actions[0]] - 0.2)
    torch.testing.assert_close(captured[0], expected / (len(scored) * 4), rtol=0, atol=1e-6)


def test_masked_rows_leave_numerator_and_denominator_but_not_the_length(tmp_path, stack):
    """CHECKS 9: with overlong = "mask" a step is that of its finished rows alone; length stays that of all rows."""
    settings = {"algorithm.preset": "dr_grpo", "group_size": 8, "steps": 1, "overlong": "mask", "max_new_tokens": 3}

    def shorter(completion):
        return 1.0 / len(completion)

    session = bandit_session(tmp_path / "run", settings, reward=shorter, arms=2, stop=0, stack=stack)
    captured = []
    session.optimizer.step = lambda: captured.append(session.policy.module.logits.grad[0].clone())
    policy_gradient.train(session)
    rows = session.engine.sample(
        session.encode(session.task.prompts * 16),
        group_size=8,
        sampling=session.sampling,
        seed=session.seed("rollout", 1, 0),
    )
    finished = [row for row in rows if row.terminated]
    assert 0 < len(finished) < len(rows)
    expected = torch.zeros(2)
    for row in finished:
        peers = [shorter(other.text) for other in finished if other.group == row.group]
        for action in row.actions:
            expected -= (shorter(row.text) - sum(peers) / len(peers)) * (torch.eye(2)[action] - 0.5)
    torch.testing.assert_close(captured[0], expected / (len(finished) * 3), rtol=0, atol=1e-6)
    assert session.run.metrics["length"][1] == pytest.approx(sum(len(row.actions) for row in rows) / len(rows))


@pytest.mark.parametrize("preset", ["grpo", "ppo"])
def test_engine_trainer_gap_is_logged_every_step(preset, tmp_path):
    """CHECKS 22: with and without a scoring pass before the update; the local engine's gap is rounding."""
    for step in train(tmp_path, algorithm=preset).history():
        assert 0 <= step["gap_max"] < 1e-4
        assert 0 <= step["gap_k3"] < 1e-7
        assert step["gap_ess"] > 0.9999


def test_reward_worker_failures_off_the_main_thread(tmp_path):
    """CHECKS 40: a reward that raises or hangs, trained from a thread, is counted and its sample excluded."""

    def moody(completion):
        if len(completion) % 3 == 0:
            raise ValueError("no")
        if completion and completion[0] in "abcdefghijklmABCDEFGHIJKLM":
            import time

            time.sleep(60)
        return 1.0

    moody_task = upslope.Task(prompts=["a", "b", "c"], reward=moody)
    runs = []
    settings = {"task": moody_task, "isolation": "process", "timeout_s": 0.5, "steps": 1, "max_new_tokens": 4}
    thread = threading.Thread(target=lambda: runs.append(train(tmp_path, **settings)))
    thread.start()
    thread.join()
    metrics = runs[0].history()[0]
    reasons = {name for name in metrics if name.startswith("dropped/")}
    assert reasons == {"dropped/moody: raised ValueError", "dropped/moody: timed out after 0.5 s"}
    assert metrics["samples"] + metrics["dropped"] == 24
    assert metrics["reward"] == 1.0


def test_every_sample_failing_stops_the_run(tmp_path):
    """A reward that never works is an error that names it, not a run of zeros."""

    def broken(completion):
        raise RuntimeError("the grader is down")

    with pytest.raises(DivergenceError, match="broken: raised RuntimeError"):
        train(tmp_path, task=upslope.Task(prompts=["a"], reward=broken), steps=50, max_bad_steps=2)


def test_early_stopping_keeps_the_best_model(tmp_path):
    """A metric that only falls stops the run after `patience` evaluations, and the best weights are exported."""
    state = {"calls": 0}

    def falling(completion):
        return vowels(completion)

    def metric(completion):
        state["calls"] += 1
        return 1.0 / state["calls"]

    falling_task = upslope.Task(prompts=["a", "b", "c"], reward=falling, metric=metric, eval_prompts=["d"])
    settings = {"steps": 50, "every_steps": 1, "patience": 2, "checkpoint_every_steps": 1, "keep_last": 1}
    run = train(tmp_path, task=falling_task, **settings)
    assert run.last_step == 2
    assert next(run.events("finished"))["reason"] == "the metric has not risen for 2 evaluations"


def test_dynamic_sampling_replaces_groups_of_equal_scores(tmp_path, stack):
    """DAPO: a prompt whose samples all score the same is replaced; what was dropped is counted."""
    settings = {"algorithm.preset": "dapo", "overlong": "end", "group_size": 2, "steps": 1, "max_resamples": 8}
    session = bandit_session(tmp_path / "run", {**settings, "prompts_per_step": 8}, stack=stack)
    policy_gradient.train(session)
    metrics = session.run.history()[0]
    assert metrics["samples"] == 16
    assert metrics["dropped"] == metrics["dropped/equal scores"] > 0
    assert session.state.position == (16 + metrics["dropped"]) / 2


def test_kl_stop_ends_the_epochs(tmp_path, stack):
    settings = {"algorithm.preset": "ppo", "epochs": 20, "steps": 2, "kl_stop": 0.01, "lr": 0.2}
    session = bandit_session(tmp_path / "run", settings, stack=stack)
    policy_gradient.train(session)
    assert 1 < session.run.history()[1]["updates"] < 20


def test_resume_with_more_steps_and_without_a_checkpoint(tmp_path):
    run = train(tmp_path, checkpoint_every_steps=1)
    longer = upslope.resume(run, task=task(), overrides={"steps": 4})
    assert sorted(longer.metrics["reward"]) == [1, 2, 3, 4]
    assert "steps = 4" in longer.recipe_toml
    bare = train(tmp_path / "bare", checkpoint_every_steps="none")
    with pytest.raises(CheckpointError, match="finished and kept no checkpoint"):
        upslope.resume(bare, task=task())
    with pytest.raises(RecipeError, match="was a Python object; give it again"):
        upslope.resume(run)


def test_resume_refuses_another_base_model(tmp_path):
    """CHECKS 20: after a resume the reference is still the base model, or there is no resume."""
    run = train(tmp_path, checkpoint_every_steps=1)
    with pytest.raises(CheckpointError, match="other weights"):
        upslope.resume(run, task=task(), overrides={"seed": 9})  # tiny models are drawn from the seed


def test_a_broken_tracker_is_left_out(tmp_path):
    class Broken:
        def log(self, step, values):
            raise OSError("disk full")

        def close(self):
            pass

    with pytest.warns(UserWarning, match="Broken failed and is left out: OSError: disk full"):
        run = train(tmp_path, trackers=[Broken()])
    assert run.last_step == 2
    assert len(list(run.events("tracker_failed"))) == 1


def test_learning_rate_schedule():
    def factors(schedule):
        settings = {"total_steps": 12, "warmup_steps": 2, "schedule": schedule, "final_fraction": 0.1}
        return [learning_rate_factor(step, **settings) for step in range(1, 13)]

    assert factors("constant") == pytest.approx([1 / 3, 2 / 3] + [1.0] * 10)
    assert factors("linear")[2:] == pytest.approx([1 - 0.09 * i for i in range(1, 11)])
    assert factors("cosine")[6] == pytest.approx(0.55)
    assert factors("cosine")[-1] == pytest.approx(0.1)


def test_data_order_is_shuffled_passes():
    stream = data_order(3, position=0, count=20, size=10)
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]
    assert data_order(3, position=7, count=9, size=10) == stream[7:16]


def test_held_out_prompts_share_no_id_with_training_prompts():
    prompts = [Prompt(0, "a"), Prompt(1, "b")]
    with pytest.raises(DataError, match="two prompts with id 1"):
        upslope.Task(prompts=prompts, reward=vowels, eval_prompts=[Prompt(1, "c")])


def test_another_preset_replaces_the_settings_that_spell_out_the_old_one():
    resolved = Recipe.resolve({"algorithm": {"preset": "ppo", "group_size": 4, "clip_high": 0.3}})
    again = Recipe.resolve(resolved.model_dump(), {"preset": "grpo"}).algorithm
    assert again == Recipe.resolve({"algorithm": {"preset": "grpo", "group_size": 4, "clip_high": 0.3}}).algorithm


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "ppo", "kl": "loss"}, "kl_estimator is 'k1', whose expected gradient in the loss is zero"),
        ({"preset": "ppo", "kl_estimator": "k3"}, "kl_estimator is 'k3', whose gradient is wrong in the reward"),
        ({"preset": "ppo", "kl_coef": 0.0}, "kl_target is set, but kl_coef is 0"),
        ({"preset": "gspo", "dual_clip": 3.0}, "dual_clip is set, but it belongs to surrogate 'clip'"),
        ({"preset": "ppo", "dynamic_sampling": True}, "group_size is 1, but dynamic_sampling needs at least 2"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.resolve({"algorithm": settings})


def test_small_steps_are_not_lost_in_bfloat16(tmp_path):
    """Weights are kept in float32: Adam's first step of size lr = 1e-6 moves every weight that has a gradient."""
    torch.manual_seed(0)
    before = load_model("tiny-llama", dtype=torch.float32)[0].state_dict()
    quiet = {"kl": "off", "kl_coef": 0.0, "warmup_steps": 0, "steps": 1, "lr": 1e-6}
    after = train(tmp_path, dtype="bfloat16", **quiet).load_model().state_dict()
    moved = [(after[name] - before[name]).abs() for name in before if "layers" in name]
    assert all(((m > 2e-7) & (m < 2e-6)).float().mean() > 0.95 for m in moved)


def test_supervised_loss_is_that_of_the_model_whatever_the_sampling(tmp_path):
    losses = []
    for number, sampling in enumerate(({}, {"temperature": 0.3, "top_p": 0.2})):
        run = train(tmp_path / str(number), method="supervised", steps=1, dropout=False, **sampling)
        losses.append(run.metrics["loss"][1])
    assert losses[0] == losses[1]


def test_resume_takes_new_optimiser_settings(tmp_path):
    run = train(tmp_path, checkpoint_every_steps=1, kl="off", kl_coef=0.0)
    before = run.load_model().state_dict()
    again = upslope.resume(run, task=task(), overrides={"steps": 3, "lr": 1e-12})
    after = again.load_model().state_dict()
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 1e-9


def test_resume_refuses_other_prompts(tmp_path):
    run = train(tmp_path, checkpoint_every_steps=1)
    with pytest.raises(CheckpointError, match="trained on other prompts"):
        upslope.resume(run, task=upslope.Task(prompts=["something else"], reward=vowels), overrides={"steps": 3})


def test_run_that_ended_before_its_first_checkpoint_starts_again(tmp_path):
    """CHECKS 38: kill -9 before any checkpoint; the run's own start is the state to resume from."""
    whole = train(tmp_path / "whole")
    cut = Run.create(tmp_path / "cut", whole.recipe_toml)
    upslope.resume(cut, task=task())
    ours, theirs = (path.model_path / "model.safetensors" for path in (whole, cut))
    assert ours.read_bytes() == theirs.read_bytes()


def test_misspelt_model_leaves_no_run_folder(tmp_path):
    with pytest.raises(ModelError, match="did you mean 'tiny-llama'"):
        train(tmp_path, model="tiny-lama")
    assert not (tmp_path / "run").exists()


def test_prompts_without_room_for_an_answer_are_refused_before_the_run_begins(tmp_path):
    long = upslope.Task(
        prompts=[{"prompt": "a", "completion": "b"}, {"prompt": "c" * 300, "completion": "d"}], reward=vowels
    )
    with pytest.raises(DataError, match=r"prompt 1 .*the model's context has room for .*; shorten"):
        train(tmp_path, task=long)
    with pytest.raises(DataError, match=r"prompt 1 and its completion have 302 tokens, which exceeds .* 256; shorten"):
        train(tmp_path, task=long, method="supervised")
    with pytest.raises(DataError, match=r"prompt 0 has no column 'answer' \(supervised.completion\)"):
        train(tmp_path, task=task(), method="supervised", completion="answer")
    assert not (tmp_path / "run").exists()


def test_an_error_in_mid_run_keeps_what_was_learned(tmp_path):
    """The held-out metric breaks after the first step: that step is saved."""
    state = {"calls": 0}

    def metric(completion):
        state["calls"] += 1
        return 1.0 if state["calls"] <= 13 else math.nan

    breaking = upslope.Task(prompts=["a", "b"], reward=vowels, metric=metric, eval_prompts=["d"])
    with pytest.raises(RewardError, match="none of 1 held-out prompts could be scored: metric: returned nan"):
        train(tmp_path, task=breaking, algorithm="reinforce", prompts_per_step=12, every_steps=1)
    assert [path.name for path in Run.open(tmp_path / "run").checkpoints()] == ["step-00000001"]


def test_a_run_of_nothing_but_failures_is_no_success(tmp_path):
    """Fewer steps than max_bad_steps, and none could be taken: an error, not an untrained model called finished."""

    def broken(completion):
        raise RuntimeError("the grader is down")

    with pytest.raises(DivergenceError, match="broken: raised RuntimeError"):
        train(tmp_path, task=upslope.Task(prompts=["a"], reward=broken), steps=2, max_bad_steps=5)


def test_a_start_that_failed_leaves_the_folder_free(tmp_path):
    with pytest.raises(RecipeError, match="unknown tracker"):
        train(tmp_path, trackers=["tensorbord"])
    assert train(tmp_path).last_step == 2


def test_settings_given_to_resume_take_effect_or_are_refused(tmp_path):
    run = train(tmp_path, algorithm="ppo", checkpoint_every_steps=1)
    with pytest.raises(RecipeError, match="folder cannot change"):
        upslope.resume(run, task=task(), overrides={"run.folder": "elsewhere"})
    again = upslope.resume(run, task=task(), overrides={"steps": 3, "kl_coef": 0.5})
    assert again.metrics["kl_coef"][3] == 0.5
    assert len(list(again.events("settings"))) == 1
    with pytest.raises(CheckpointError, match="holds other parameters than this model"):
        upslope.resume(run, task=task(), overrides={"critic": "separate"})


def test_early_stopping_asked_for_on_resume_exports_what_it_can(tmp_path):
    """The best step was before checkpoints were kept for it: the last model is exported, and said so."""
    state = {"calls": 0}

    def metric(completion):
        state["calls"] += 1
        return 1.0 / state["calls"]

    falling = upslope.Task(prompts=["a", "b"], reward=vowels, metric=metric, eval_prompts=["d"])
    run = train(tmp_path, task=falling, prompts_per_step=2, every_steps=1, checkpoint_every_steps=2)
    with pytest.warns(UserWarning, match="the best model, of step 0, cannot be read"):
        upslope.resume(run, task=falling, overrides={"steps": 6, "patience": 3})
    finished = list(run.events("finished"))[-1]
    assert finished["model_step"] == finished["step"] == 3


def test_frozen_adapters_stay_frozen_beside_a_reference(tmp_path):
    """LoRA: scoring the reference turns no gradient on, so a resumed run finds its parameters."""
    settings = {"lora": {"r": 2}, "freeze": ["*layers.0*"], "checkpoint_every_steps": 1}
    run = train(tmp_path, **settings)
    assert upslope.resume(run, task=task(), overrides={"steps": 3}).last_step == 3


def test_none_in_task_options_survives_the_recipe_file():
    recipe = Recipe.resolve({"task": {"options": {"system": None, "digits": 2}}})
    assert Recipe.resolve(tomllib.loads(recipe.to_toml())).task.options == {"system": None, "digits": 2}


def test_early_stopping_may_find_the_start_best(tmp_path):
    """The model before the first step was the best one: it is what is exported, checkpoints asked for or not."""
    torch.manual_seed(0)
    before = load_model("tiny-llama", dtype=torch.float32)[0].state_dict()
    state = {"calls": 0}

    def metric(completion):
        state["calls"] += 1
        return 1.0 / state["calls"]

    falling = upslope.Task(prompts=["a", "b"], reward=vowels, metric=metric, eval_prompts=["d"])
    settings = {"prompts_per_step": 2, "every_steps": 1, "patience": 2, "checkpoint_every_steps": "none"}
    run = train(tmp_path, task=falling, steps=9, **settings)
    after = run.load_model().state_dict()
    assert run.last_step == 2
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluate_of_a_run_measures_what_the_run_measured(tmp_path):
    """Stop strings, rewards and length are the run's own."""

    def ended(completion, terminated):
        return float(terminated)

    stops = upslope.Task(prompts=["a", "b"], reward=ended, eval_prompts=[f"p{i}" for i in range(20)])
    settings = {"task": stops, "stop": list("abcdefgh"), "max_new_tokens": 12, "every_steps": 2, "greedy": True}
    run = train(tmp_path, prompts_per_step=2, **settings)
    inside = run.metrics["evaluate/metric"][2]
    assert upslope.evaluate(run, stops).interval.estimate == pytest.approx(inside)
    assert inside > 0


def test_separate_critic_learns_at_the_models_rate(tmp_path):
    policy = load_policy(
        "tiny-llama",
        critic="separate",
        keep_reference=False,
        dtype="float32",
        lora=None,
        freeze=(),
        gradient_checkpointing=False,
        device="cpu",
        seed=0,
    )
    optimizer = make_optimizer(policy.module, Recipe.resolve({}).optimizer)
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in policy.module.named_parameters()}
    assert {rate for name, rate in named.items() if name.startswith("value_head.")} == {3e-4}
    assert {rate for name, rate in named.items() if not name.startswith("value_head.")} == {1e-5}
