"""Tuning as a whole: runs on disk, results, refusals, and processes that die."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import upslope
from upslope.errors import CheckpointError, DataError, DependencyError, RecipeError
from upslope.evaluation.clustered import crossed_mean
from upslope.recipe import Recipe
from upslope.report.run import Run
from upslope.tuning import samplers
from upslope.tuning.plan import Plan
from upslope.tuning.space import Space
from upslope.tuning.trials import Trials, final, readings

pytest.importorskip("optuna")

HERE = Path(__file__).parent
SPACE = "optimizer.lr = {low = 1e-5, high = 2e-2, log = true}"


@pytest.fixture
def vowel_task(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("vowel_task")


@pytest.fixture
def tuned(vowel_task, tmp_path):
    """`tune` on the vowels, with what a test changes."""
    said = []

    def tune(space=SPACE, **given):
        asked = {"folder": tmp_path / "tuning", "trials": 3, "say": said.append, **given}
        return upslope.tune(Recipe.resolve(vowel_task.RECIPE), space, **asked)

    tune.said = said
    return tune


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six trials of two seeds, one of which fails, as a stranger would have run them."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        recipe = Recipe.resolve(importlib.import_module("vowel_task").RECIPE)
        space = [SPACE, 'model.name = ["tiny-llama", "no-such-model"]']
        return folder, upslope.tune(recipe, space, folder=folder, trials=6, seeds=2, say=lambda line: None, seed=1)


def test_the_best_is_the_mean_over_seeds_and_prompts_that_its_runs_logged(whole):
    folder, found = whole
    finished = [trial for trial in found.trials if trial.state == "finished"]
    for trial in finished:
        runs = [Run.open(folder / f"trials/{trial.number:04d}/seed-{seed}") for seed in (0, 1)]
        last = [list(run.events("evaluate"))[-1]["values"] for run in runs]
        assert trial.metric == pytest.approx(np.mean([list(values.values()) for values in last]))
        recipes = [Recipe.load(run.recipe_path) for run in runs]
        assert [recipe.training.seed for recipe in recipes] == [0, 1]
        assert {recipe.optimizer.lr for recipe in recipes} == {trial.values["optimizer.lr"]}
    best = max(finished, key=lambda trial: trial.metric)
    assert (found.best, found.values) == (best.number, best.values)
    assert found.naive.estimate == pytest.approx(best.metric)


def test_the_estimate_is_evaluates_own_on_prompts_that_no_run_has_seen(whole, vowel_task):
    folder, found = whole
    seen = {name for log in folder.glob("trials/*/seed-*") for values in readings(log).values() for name in values}
    task = vowel_task.task()
    fresh = [prompt for prompt in task.eval_prompts if str(prompt.id) not in seen]
    assert (len(seen), len(fresh)) == (found.num_prompts, found.num_fresh_prompts) == (24, 12)
    models = [folder / f"trials/{found.best:04d}/seed-{seed}" for seed in (0, 1)]
    values = [upslope.evaluate(model, replace(task, eval_prompts=fresh)).measurement.values for model in models]
    matrix = np.array([[each[prompt.id] for prompt in fresh] for each in values])
    mean = crossed_mean(matrix)
    assert found.estimate.estimate == pytest.approx(matrix.mean())
    if np.ptp(matrix):
        low, high = mean.bounds(0.95)
        assert (found.estimate.low, found.estimate.high) == pytest.approx((max(low, 0.0), min(high, 1.0)))


def test_a_failed_trial_is_counted_and_named_and_tuning_goes_on(whole):
    _, found = whole
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed
    assert found.count("failed") + found.count("finished") + found.count("pruned") == 6
    assert all("no-such-model" in trial.note for trial in failed)
    assert any(f"{len(failed)} of 6 trials failed" in note for note in found.notes)
    assert not any(trial.values["model.name"] == "no-such-model" for trial in found.trials if trial.state != "failed")


def test_what_stands_in_the_folder(whole):
    folder, found = whole
    best = Recipe.load(folder / "best.toml")
    assert best == Recipe.resolve(Recipe.load(folder / "plan/recipe.toml").model_dump(), found.values)
    assert best.run.folder is None
    written = json.loads((folder / "result.json").read_text())
    assert written == json.loads(json.dumps(found.as_dict()))
    assert written["estimate"]["estimate"] == found.estimate.estimate
    report = (folder / "report.md").read_text()
    assert str(found) in report
    assert all(f"| {trial.number} | {trial.state} |" in report for trial in found.trials)
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert page.count("<circle") == sum(trial.metric is not None for trial in found.trials)
    models = {path.parent.parent.name for path in folder.glob("trials/*/seed-*/model")}
    assert models == {f"{found.best:04d}"}, "of all others the weights are gone"


def test_called_again_it_has_nothing_to_do_and_more_trials_may_be_asked_for(tuned, tmp_path):
    first = tuned(sampler="tpe")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("events.jsonl")}
    tuned.said.clear()
    again = tuned(sampler="tpe")
    assert (again.trials, again.estimate, again.values) == (first.trials, first.estimate, first.values)
    assert not tuned.said
    more = tuned(sampler="random", trials=4)
    assert more.trials[:3] == first.trials
    assert len(more.trials) == 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_one_worker_finds_the_same_twice(tuned, tmp_path):
    one, two = (tuned(folder=tmp_path / name, trials=2, prune=False, seed=5) for name in ("one", "two"))
    assert one.trials == two.trials
    assert any("nothing was pruned" in note for note in one.notes)


def test_a_trial_that_is_worse_is_given_up_before_its_end(tuned, tmp_path, monkeypatch):
    """Evidence that suffices at once: only the first trial, which has no incumbent, reaches its last step."""
    monkeypatch.setattr("upslope.tuning.worker.log_evidence", lambda *_, **__: 99.0)
    found = tuned(trials=3)
    assert [trial.state for trial in found.trials] == ["finished", "pruned", "pruned"]
    assert found.trials[1].note == "worse than trial 0, seen at step 2 of seed 0"
    log = tmp_path / "tuning/trials/0001/seed-0"
    assert max(readings(log)) == 2
    assert found.trials[1].metric == pytest.approx(np.mean(list(readings(log)[2].values())))


def test_metrics_beyond_the_bounds_stop_tuning_before_the_first_step(tuned, tmp_path):
    with pytest.raises(RecipeError, match=r"outside the bounds 0 to 0\.01 that pruning bets by; give the metric's own"):
        tuned(bounds=(0.0, 0.01))
    assert not list(Run.open(tmp_path / "tuning/trials/0000/seed-0").events("train"))


def test_where_every_trial_fails_the_first_reason_is_given(tuned):
    with pytest.raises(RecipeError, match=r"no trial of 2 finished, the first because: .*no-such-model"):
        tuned(space='model.name = ["no-such-model", "no-such-model-either"]', trials=2)


def test_a_trial_that_ends_while_another_process_looks_is_not_taken_over(tmp_path, vowel_task, monkeypatch):
    plan = Plan(tmp_path / "tuning", Recipe.resolve(vowel_task.RECIPE), Space.read(SPACE), trials=1)
    plan.make_folder()
    one, two = Trials(plan), Trials(plan)
    claim, locked = one.claim(print), two._locked

    def ended_meanwhile(number):
        one.finish(claim, 0.5)
        claim.lock.release()
        return locked(number)

    monkeypatch.setattr(two, "_locked", ended_meanwhile)
    monkeypatch.setattr("upslope.tuning.trials._POLL_S", 0.0)
    assert two.claim(lambda line: None) is None
    assert [(trial.state, trial.metric) for trial in two.all()] == [("finished", 0.5)]
    assert not (plan.trial_path(0) / "lock").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"space": "optimizer.lr = [1e-4, 1e-3]"},
            "its space has no optimizer.lr, and this one optimizer.lr = [0.0001",
        ),
        ({"settings": {"steps": 5}}, "its recipe has training.steps = 4, and this one training.steps = 5"),
        ({"seeds": 2}, "its tuning has seeds = 1, and this one seeds = 2"),
        ({"held_back": 0.5}, "held_back = 0.3333, and this one held_back = 0.5"),
    ],
)
def test_trials_of_another_plan_are_refused(tuned, tmp_path, given, says, vowel_task):
    plan = Plan(tmp_path / "tuning", Recipe.resolve(vowel_task.RECIPE), Space.read(SPACE))
    plan.make_folder()
    Trials(plan)
    with pytest.raises(RecipeError, match="holds the trials of another plan") as raised:
        tuned(**given)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"trials": 0}, RecipeError, "trials is 0, but must be 1 at least"),
        ({"seeds": 0}, RecipeError, "seeds is 0, but must be 1 at least"),
        ({"workers": 0}, RecipeError, "workers is 0, but must be 1 at least"),
        ({"held_back": 1.0}, RecipeError, "held_back is 1.0, but must be a share between 0 and 1"),
        ({"bounds": (1.0, 0.0)}, RecipeError, "bounds of the metric are crossed: 1 to 0"),
        ({"sampler": "bayes"}, RecipeError, "there is no sampler 'bayes'; it is one of tree, tpe, gp, random"),
        ({"settings": {"evaluation.num_prompts": 3}}, DataError, "has 3 different held-out prompts, of which 1 would"),
        (
            {"settings": {"method": "reward_model"}},
            RecipeError,
            "method 'reward_model' has no metric of what the model",
        ),
        ({"space": "reward.functions = [['correct'], ['ended']]"}, RecipeError, "give the task a metric"),
    ],
)
def test_what_cannot_be_tuned_is_said_before_a_folder_is_made(tuned, tmp_path, given, error, says):
    with pytest.raises(error) as raised:
        tuned(**given)
    assert says in str(raised.value)
    assert not (tmp_path / "tuning").exists()


def test_a_task_object_is_of_one_process(tuned, vowel_task):
    with pytest.raises(RecipeError, match="a Task object stays in its process"):
        tuned(task=vowel_task.task(), workers=2)


def test_a_folder_that_cannot_be_written_and_a_file_that_is_no_study(tuned, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make the tuning folder"):
        tuned(folder=tmp_path / "file" / "tuning")
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(CheckpointError, match=r"cannot open .*study\.db as a study"):
        tuned()


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(DependencyError, match=r"pip install 'upslope\[tune\]'"):
        samplers.open_study(tmp_path / "study.db")


def test_the_gp_sampler_takes_a_conditional_space(tmp_path):
    space = Space.read(['preset = ["ppo", "grpo"]', '[[when]]\nif = {preset = "ppo"}\nlam = {low = 0.5, high = 1.0}'])
    study = samplers.open_study(tmp_path / "study.db")
    for number in range(12):
        trial = study.ask()
        study.sampler = samplers.make_sampler("gp", space, seed=number)
        values = space.values(lambda parameter, trial=trial: samplers.suggest(trial, parameter))
        samplers.tell(study, number, "COMPLETE", values.get("algorithm.lam", 0.0))
    assert samplers.settings_of(space, study.best_trial.params)["algorithm.preset"] == "ppo"
    assert set(samplers.importance(study, space)) == {"algorithm.preset", "algorithm.lam"}


def test_after_a_kill_the_same_command_goes_on_and_nothing_counts_twice(tuned, tmp_path, vowel_task):
    """Two workers of the command line, killed with it in the middle of a run each; another process ends their work."""
    recipe, folder, settings = tmp_path / "recipe.toml", tmp_path / "tuning", {"steps": 40}
    recipe.write_text(tomli_w.dumps(vowel_task.RECIPE))
    command = [sys.executable, "-c", "from upslope.cli.main import run; run()", "tune", str(recipe), "--space", SPACE]
    command += ["--folder", str(folder), "--trials", "3", "--workers", "2", "--no-prune", "--set", "steps=40"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), *sys.path))}
    doomed = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        logs = [folder / f"trials/{number:04d}/seed-0" for number in (0, 1)]
        deadline = time.monotonic() + 100
        while not all(list((log / "checkpoints").glob("step-*")) for log in logs):
            assert time.monotonic() < deadline
            assert doomed.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(doomed.pid, signal.SIGKILL)
        doomed.wait()
    assert {trial.state for trial in Trials(Plan.load(folder)).all()[:2]} == {"running"}
    found = tuned(trials=3, prune=False, settings=settings)
    assert [(trial.number, trial.state) for trial in found.trials] == [(n, "finished") for n in range(3)]
    assert sum("its process is gone; going on with it" in line for line in tuned.said) == 2
    for log in logs:
        run = Run.open(log)
        assert [step["step"] for step in run.history()] == list(range(1, 41))
        assert next(run.events("resume"))["step"] > 0
        assert final(log) is not None
