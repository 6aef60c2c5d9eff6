"""The commands as a user types them: what they print, what they leave, and how they end."""

import io
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from upslope import __version__
from upslope.cli.main import run as command_line
from upslope.cli.progress import LiveProgress, duration, sparkline
from upslope.cli.quickstart import report
from upslope.presets import PRESETS
from upslope.recipe import Recipe
from upslope.report.run import Run

RECIPE = """
[model]
name = "tiny-llama"
[task]
name = "arithmetic"
options = { num_eval = 6 }
[sampling]
max_new_tokens = 4
[training]
steps = 2
prompts_per_step = 4
[evaluation]
every_steps = 2
[run]
trackers = []
checkpoint_every_steps = 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two steps of PPO on a tiny model, by `upslope train`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "recipe.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["upslope", "train", f"{folder}/recipe.toml", "--set", f"folder={folder}/run"])
        with pytest.raises(SystemExit) as ended:
            command_line()
    assert not ended.value.code
    return folder / "run"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def error_of(result):
    """The one sentence of a refused command."""
    status, out, err = result
    assert status == 2
    assert not out.strip()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("error: ").strip()


def test_train_leaves_a_whole_run(trained):
    run = Run.open(trained)
    assert [event["step"] for event in run.events("train")] == [1, 2]
    assert [event["step"] for event in run.events("evaluate")] == [0, 2]
    assert Recipe.load(trained / "recipe.toml").run.folder == str(trained)
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    assert model.config.model_type == "llama"
    assert (trained / "model" / "critic.safetensors").exists()


def test_train_says_what_it_does(upslope, recipe, tmp_path):
    status, out, err = upslope("train", recipe, "--set", f"folder={tmp_path}/run", "--set", "steps=2")
    assert (status, err) == (0, "")
    for expected in (
        "step 0: held-out metric 0.",
        "step 1/2  reward ",
        "step 2/2  reward ",
        "tok/s",
        f"{tmp_path}/run",
    ):
        assert expected in out
    assert out.rstrip().endswith(f"the model is an ordinary Transformers folder: {tmp_path}/run/model")


def test_resume_continues_and_equals_an_uninterrupted_run(upslope, recipe, tmp_path):
    """CHECKS 38: two steps and one more are three steps, to the bit, by the commands."""
    common = ("--set", "every_steps=none")
    upslope("train", recipe, *common, "--set", f"folder={tmp_path}/whole", "--set", "steps=3")
    upslope(
        "train", recipe, *common, "--set", f"folder={tmp_path}/part", "--set", "steps=3", "--set", "max_train_s=1e-9"
    )
    before = [event["step"] for event in Run.open(tmp_path / "part").events("train")]
    assert before == [1]
    status, out, _ = upslope("resume", tmp_path / "part", "--set", "max_train_s=none")
    assert status == 0
    assert "step 3/3" in out
    assert "step 1/3" not in out
    whole, part = (AutoModelForCausalLM.from_pretrained(tmp_path / n / "model").state_dict() for n in ("whole", "part"))
    for name, weight in whole.items():
        assert torch.equal(part[name], weight), name


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["optimiser.lr=3"], "'optimiser.lr' is no setting; did you mean 'optimizer.lr'?"),
        (["group_sise=3"], "'group_sise' is no setting; did you mean 'algorithm.group_size'?"),
        (["name=x"], "setting 'name' could be any of model.name, task.name; write it in full"),
        (["lr=fast"], "optimizer.lr is 'fast', but it should be a valid number"),
        (["lr"], "--set 'lr' has no value; write --set section.setting=value"),
        (["minibatches=3"], "training.prompts_per_step is 4, which algorithm.minibatches = 3 must divide"),
        (
            ["model.name=tiny-lama"],
            "model 'tiny-lama' is no folder, and hub ids are written organisation/model; did you mean",
        ),
        (["task.name=arithmetik"], "there is no task 'arithmetik'"),
        (["device=cuda"], "model.device is 'cuda', but torch sees no such device; use 'cpu'"),
        (["freeze=['nothing.*']"], "freeze pattern 'nothing.*' matches no parameter"),
        (["max_new_tokens=4000"], "the model's context has room for"),
    ],
)
def test_wrong_settings_end_in_one_sentence(upslope, recipe, tmp_path, settings, sentence):
    if "cuda" in sentence and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, so asking for it is no error")
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = upslope("train", recipe, "--set", f"folder={tmp_path}/run", *arguments)
    assert sentence in error_of((result[0], "", result[2]))


def test_runs_are_never_overwritten(upslope, trained, recipe):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (trained / "model").iterdir())
    message = error_of(upslope("train", recipe, "--set", f"folder={trained}"))
    assert "already holds a run: continue it by `upslope resume" in message
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (trained / "model").iterdir()) == before


def test_missing_things_are_named(upslope, tmp_path):
    missing = tmp_path / "missing.toml"
    assert error_of(upslope("train", missing)) == f"recipe '{missing}' cannot be read: No such file or directory"
    missing = tmp_path / "norun"
    assert error_of(upslope("resume", missing)) == f"{missing} is no run folder: it holds no recipe.toml"
    assert "is no folder, and hub ids are written organisation/model" in error_of(
        upslope("generate", "missing-model", "hello")
    )
    assert "so a task must be named to evaluate on" in error_of(upslope("evaluate", "tiny-llama"))
    assert "there is no task 'nope'" in error_of(upslope("evaluate", "tiny-llama", "--task", "nope"))
    assert error_of(upslope("fetch", "nope")).startswith("'nope' is no embedded model; the embedded models are: smoll")


def test_unknown_commands_and_options_are_refused(upslope):
    for arguments in (("trian",), ("train", "--sett", "x"), ("generate", "tiny-llama", "x", "--samples", "0")):
        status, out, err = upslope(*arguments)
        assert status == 2
        assert not out
        assert arguments[-2 if len(arguments) > 1 and arguments[-1] in "x0" else -1] in err


def test_generate_writes_what_the_model_would(upslope, trained):
    """Greedy text of the saved model, by its run folder; the seed decides samples."""
    status, out, _ = upslope("generate", trained, "1+1=", "--plain", "--max-new-tokens", "6")
    assert status == 0
    model = Run.open(trained).load_model()
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    ids, written = tokenizer("1+1=")["input_ids"], []
    with torch.no_grad():
        for _ in range(6):
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    assert out.rstrip("\n") == tokenizer.decode(written, skip_special_tokens=True)
    again = upslope("generate", trained, "1+1=", "--temperature", "1", "--samples", "3", "--seed", "5")[1]
    same = upslope("generate", trained, "1+1=", "--temperature", "1", "--samples", "3", "--seed", "5")[1]
    other = upslope("generate", trained, "1+1=", "--temperature", "1", "--samples", "3", "--seed", "6")[1]
    assert again == same != other


def test_generate_looks_for_the_best_text_with_beams(upslope, trained):
    """The best text is Transformers' own; with several, scores stand in front, best first."""
    status, out, _ = upslope("generate", trained, "1+1=", "--plain", "--max-new-tokens", "6", "--beams", "3")
    assert status == 0
    model, tokenizer = Run.open(trained).load_model(), AutoTokenizer.from_pretrained(trained / "model")
    ids = torch.tensor([tokenizer("1+1=")["input_ids"]])
    best = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=3, do_sample=False, max_new_tokens=6)
    assert out.rstrip("\n") == tokenizer.decode(best[0, ids.shape[1] :], skip_special_tokens=True)
    arguments = ("--plain", "--max-new-tokens", "6", "--beams", "4", "--n-best", "3", "--length-penalty", "0")
    lines = upslope("generate", trained, "1+1=", *arguments)[1].splitlines()
    scores = [float(line.split()[0]) for line in lines if line.startswith("-")]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    status, _, error = upslope("generate", trained, "1+1=", "--beams", "2", "--n-best", "3")
    assert status == 2
    assert "3 texts are asked of 2 beams" in error


def test_evaluate_reports_the_metric_with_its_interval(upslope, trained):
    status, out, _ = upslope("evaluate", trained, "--json", "--num-prompts", "5")
    found = json.loads(out)
    assert status == 0
    assert {"metric", "mean", "low", "high", "prompts", "failed", "cut", "skipped"} == found.keys()
    assert (found["metric"], found["prompts"], found["failed"]) == ("correct", 5, 0)
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["high"] - found["low"] > 0.2
    status, out, _ = upslope("evaluate", trained, "--set", "num_eval=3")
    assert status == 0
    assert out.startswith("correct = ")
    assert ", 95% interval [" in out
    assert out.rstrip().endswith("3 prompts")
    assert upslope("evaluate", trained, "--json", "--num-prompts", "5", "--beams", "2")[0] == 0
    status, out, _ = upslope("evaluate", "tiny-llama", "--task", "arithmetic", "--num-prompts", "4", "--json")
    assert json.loads(out)["prompts"] == 4


def test_presets_lists_all_and_shows_one(upslope):
    status, out, _ = upslope("presets")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["preset", *PRESETS]
    assert "…" not in out
    assert out.splitlines()[5].split() == ["ppo", "critic", "gae", "clip", "batch_std", "tokens", "reward", "1", "4"]
    status, out, _ = upslope("presets", "dapo")
    assert "algorithm.clip_high = 0.28\n" in out
    assert "algorithm.dual_clip = none\n" in out
    shown = tomllib.loads("\n".join(line.split(" = ")[0] + " = 0" for line in out.splitlines()))
    assert shown["algorithm"].keys() == Recipe().algorithm.model_dump().keys()
    assert error_of(upslope("presets", "ppoo")).endswith("did you mean 'ppo'?")


def test_version_and_help(upslope):
    assert upslope("--version") == (0, f"upslope {__version__}\n", "")
    status, out, _ = upslope("--help")
    assert status == 0
    for command in ("quickstart", "train", "resume", "generate", "evaluate", "presets", "init", "doctor", "fetch"):
        assert command in out
        status, told, _ = upslope(command, "--help")
        assert status == 0
        assert f"upslope {command} [OPTIONS]" in told


def test_interrupt_saves_and_says_how_to_resume(recipe, tmp_path):
    """Ctrl-C in the middle of a real process: status 130, a checkpoint, and the command that goes on."""
    command = [Path(sys.executable).parent / "upslope", "train", recipe, "--set", f"folder={tmp_path}/run"]
    command += ["--set", "steps=100000", "--set", "every_steps=none", "--set", "checkpoint_every_steps=1000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if line.startswith("step 2/"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    stopped = list(Run.open(tmp_path / "run").events("interrupted"))[-1]["step"]
    assert f"stopped after step {stopped}; continue with: upslope resume {tmp_path}/run" in out + err
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]


def test_quickstart_report_ends_with_its_line_for_scripts(tmp_path):
    """The last line is in the form that scripts read, whatever the width of the console."""
    with Run.create(tmp_path / "run", Recipe().to_toml()) as run:
        run.log("evaluate", step=0, metric=0.0, values={str(i): 0.0 for i in range(40)})
        run.log("evaluate", step=9, metric=0.75, values={str(i): float(i % 4 > 0) for i in range(40)})
        run.log("finished", step=9, reason="training.steps is reached", train_s=123.4)
    console = Console(width=40, record=True, file=io.StringIO())
    report(console, run)
    *_, last = console.export_text().rstrip().splitlines()
    assert last.startswith("quickstart: before=0.00 after=0.75 gain=0.75 ci=[0.6")
    assert last.endswith("] train_s=123")


def test_progress_draws_lines_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), record=True, width=200)
    with LiveProgress(console, total_steps=10) as progress:
        progress.log(5, {"reward": 0.25, "kl": 0.001, "length": 7.5, "tokens_per_s": 1234.4, "dropped": 2})
        progress.log(5, {"evaluate/metric": 0.5})
        progress.log(6, {"dropped": 0, "problem": "no sample was usable"})
    lines = console.export_text().splitlines()
    assert lines[0].startswith("step 5/10  reward 0.250  kl 0.001  length 7.5  tok/s 1234  dropped 2  eta ")
    assert lines[1] == "step 5: held-out metric 0.500"
    assert "problem no sample was usable" in lines[2]


def test_time_to_go_follows_from_the_steps_alone(monkeypatch):
    """Not from loading before the first; and a resumed run has used up some of what training.max_train_s allows."""
    clock = iter([0.0, 100.0, 100.0, 102.0])
    monkeypatch.setattr("upslope.cli.progress.time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), record=True, width=200)
    with LiveProgress(console, total_steps=10) as progress:
        progress.log(1, {"reward": 0.0, "step_s": 2.0})
        progress.log(2, {"reward": 0.0, "step_s": 2.0})
    first, second = console.export_text().splitlines()
    assert first.endswith("eta 0:18")
    assert second.endswith("eta 0:16")
    clock = iter([0.0, 5.0, 5.0])
    with LiveProgress(console, total_steps=1000, max_train_s=3600.0, trained_s=3000.0) as progress:
        progress.log(501, {"reward": 0.0, "step_s": 5.0})
    assert console.export_text().rstrip().endswith("eta 9:55")


def test_sparkline_and_duration():
    assert sparkline([]) == ""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(range(100))) == 24
    assert [duration(s) for s in (0, 7.4, 61, 3723)] == ["0:00", "0:07", "1:01", "1:02:03"]


def test_profile_tells_where_the_time_went_and_goes_on_in_a_resumed_run(upslope, recipe, tmp_path):
    """The shares printed and kept sum to 1, over the steps of both parts of the run."""
    folder = tmp_path / "run"
    status, out, _ = upslope("train", recipe, "--profile", "--set", f"folder={folder}")
    assert not status
    assert "| part " in out
    assert "| decode " in out
    first = json.loads((folder / "profile.json").read_text())
    assert first["steps"] == 2
    assert sum(first["shares"].values()) == pytest.approx(1.0, rel=1e-9)
    assert (folder / "profile.md").read_text() in out
    status, _, _ = upslope("resume", folder, "--profile", "--set", "steps=3")
    assert not status
    assert json.loads((folder / "profile.json").read_text())["steps"] == 3


def test_estimators_are_judged_into_three_files(upslope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ("--task", "arithmetic", "--num-prompts", "6", "--branches", "4", "--max-new-tokens", "3")
    status, out, err = upslope("evaluate", "tiny-llama", "--estimators", *quick)
    assert (status, err) == (0, "")
    assert "on held-out prompts" in out
    document = json.loads((tmp_path / "estimators.json").read_text())
    assert [place["name"] for place in document["places"]][:2] == ["training prompts", "held-out prompts"]
    assert document["absent"] == {"critic": "the model is no run"}
    assert "| advantage head |" in (tmp_path / "estimators.md").read_text()
    assert "<svg" in (tmp_path / "estimators.html").read_text()
    for wrong, message in (
        (("--estimators", "--beams", "2"), "--beams and --detect are about a metric"),
        (("--estimators", "--temperature", "0"), "at temperature 0"),
        (("--shifted", "tiny-gpt2"), "go with --estimators"),
    ):
        status, _, err = upslope("evaluate", "tiny-llama", "--task", "arithmetic", *wrong)
        assert status == 2
        assert message in err
