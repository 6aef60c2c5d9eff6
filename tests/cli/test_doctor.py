"""`upslope doctor`: what it says, its exit status, and that one failed check does not end the others."""

import json
import sys

import pytest
import torch

from upslope.doctor import machine, memory
from upslope.errors import KernelError

MACHINE = ("versions", "devices", "threads", "compiler", "memory")
CHECKS = (*MACHINE, "recipe", "task", "model", "engine", "batch", "forecast", "dry step", "parity")
RECIPE = """
[model]
name = "tiny-llama"
[task.options]
num_eval = 6
[algorithm]
group_size = 4
[sampling]
max_new_tokens = 6
[training]
prompts_per_step = 4
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def found(upslope, recipe):
    """The findings of a doctored recipe: (exit status, {check: finding})."""

    def call(*settings, **written):
        for name, text in written.items():
            recipe.with_name(f"{name}.py").write_text(text)
        arguments = [part for setting in settings for part in ("--set", setting)]
        status, out, _ = upslope("doctor", recipe, "--json", *arguments)
        report = json.loads(out)
        assert report["healthy"] == (status == 0)
        return status, {finding["check"]: finding for finding in report["findings"]}

    return call


def test_a_healthy_recipe_passes_with_every_check_and_leaves_nothing(upslope, recipe):
    status, out, err = upslope("doctor", recipe)
    assert (status, err) == (0, "")
    lines = {line.split()[1]: line for line in out.splitlines() if line.split()[0] in ("ok", "warning", "error")}
    assert list(lines)[: len(CHECKS)] == [check.split()[0] for check in CHECKS]
    assert "torch 2." in lines["versions"]
    assert "4 prompts x 4 samples = 16 rows a step" in lines["batch"]
    assert "16 rows, reward" in lines["dry"]
    assert [path.name for path in recipe.parent.iterdir()] == ["recipe.toml"]


def test_without_a_recipe_the_machine_alone_is_looked_at(upslope):
    status, out, _ = upslope("doctor", "--json")
    assert status == 0
    checks = [finding["check"] for finding in json.loads(out)["findings"]]
    assert checks == [*MACHINE]


@pytest.mark.parametrize(
    ("setting", "check", "sentence"),
    [
        ("grop_size=2", "recipe", "'grop_size' is no setting; did you mean 'algorithm.group_size'?"),
        ("model.name=tiny-lama", "model", "did you mean 'tiny-llama'?"),
        ("model.name=nobody/nothing", "model", "model 'nobody/nothing' cannot be loaded"),
        ("task.name=arithmetick", "task", "did you mean 'arithmetic'?"),
        ("reward.functions=['corect']", "task", "did you mean 'correct'?"),
        ("reward.functions=['my_rewards:missing']", "task", "there is no module 'my_rewards'"),
        ("task.options={template='{c}'}", "task", "may hold {a}, {b}, {operation} only"),
        ("max_new_tokens=4000", "batch", "the model's context has room for"),
        ("device=cuda", "model", ""),
        ("cache_gib=1e-6", "dry step", "engine.cache_gib"),
    ],
)
def test_what_is_wrong_is_one_error_in_words(found, setting, check, sentence):
    if "cuda" in setting and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, so asking for it is no error")
    status, findings = found(setting)
    assert status == 1
    assert findings[check]["level"] == "error"
    assert sentence in findings[check]["text"]
    assert "Traceback" not in str(findings)


def test_checks_go_on_after_one_failed(found):
    """Two things are wrong, and both are said; what can be looked at is."""
    _, findings = found("task.name=nope", "model.name=tiny-gpt3")
    assert {name for name, finding in findings.items() if finding["level"] == "error"} == {"task", "model"}
    _, findings = found("task.name=nope")
    assert findings["engine"]["level"] == "ok"
    assert findings["dry step"]["level"] == "warning"


def test_missing_data_and_missing_extras_are_findings(found, monkeypatch):
    status, findings = found("task.name=file", "task.options={path='lost.jsonl', reward='exact_match'}")
    assert status == 1
    assert "lost.jsonl: there is no such file" in findings["task"]["text"]
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    _, findings = found("task.name=reasoning-gym", "task.options={dataset='chain_sum'}")
    assert "pip install 'upslope[tasks]'" in findings["task"]["text"]
    monkeypatch.setitem(sys.modules, "peft", None)
    _, findings = found("model.lora.r=4")
    assert "pip install 'upslope[lora]'" in findings["model"]["text"]


def test_a_reward_of_the_users_own_that_fails_is_a_finding(found):
    status, findings = found(
        "reward.functions=['my_reward:score']", my_reward="def score(completion):\n    return completion['no']\n"
    )
    assert status == 1
    assert findings["dry step"]["level"] == "error"
    assert "no usable sample" in findings["dry step"]["text"]


def test_a_run_folder_that_is_taken_is_an_error(found, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "recipe.toml").write_text("")
    status, findings = found("folder=taken")
    assert status == 1
    assert "upslope resume taken" in findings["recipe"]["mend"]


@pytest.mark.parametrize(("free", "check"), [(50 * 2**20, "forecast"), (1000, "model")])
def test_too_little_memory_is_an_error_and_no_step_is_taken(found, monkeypatch, free, check):
    """Too little for the run is foretold; too little for the weights alone, before they are loaded."""
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    monkeypatch.setattr("upslope.doctor.examine.available_bytes", lambda: free)
    status, findings = found()
    assert status == 1
    assert findings[check]["level"] == "error"
    assert findings.get("dry step", {"level": "warning"})["level"] == "warning"


def test_a_machine_without_a_compiler_is_warned_of(found, monkeypatch):
    def missing():
        raise KernelError("no C++ compiler is installed (looked for g++)")

    monkeypatch.setattr(machine, "native", missing)
    status, findings = found()
    assert status == 0
    assert findings["compiler"]["level"] == "warning"
    assert "no C++ compiler" in findings["compiler"]["text"]


def test_more_threads_than_cores_are_warned_of(found, monkeypatch):
    for cores, level in ((1, "ok"), (2, "warning")):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: cores)
        _, findings = found()
        assert findings["threads"]["level"] == level
    assert "OMP_NUM_THREADS=2" in findings["threads"]["mend"]
