"""Trackers: what was logged is in TensorBoard's own files; the optional ones are asked for what their APIs take."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from upslope.errors import DependencyError, RecipeError
from upslope.report.trackers import open_trackers


def _scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_holds_the_numbers_and_only_these(tmp_path):
    (tracker,) = open_trackers(["tensorboard"], tmp_path, {})
    tracker.log(1, {"reward": 0.5, "evaluate/kl": torch.tensor(0.25), "note": "text", "lengths": [1, 2]})
    tracker.log(2, {"reward": 1, "evaluate/kl": float("nan")})
    tracker.close()
    assert _scalars(tmp_path / "tensorboard", "reward") == [(1, 0.5), (2, 1.0)]
    assert _scalars(tmp_path / "tensorboard", "evaluate/kl")[0] == (1, 0.25)


def test_tensorboard_hides_the_steps_that_a_resumed_run_does_again(tmp_path):
    for resume_step, steps in ((None, range(1, 6)), (2, range(3, 5))):
        (tracker,) = open_trackers(["tensorboard"], tmp_path, {}, resume_step=resume_step)
        for step in steps:
            tracker.log(step, {"reward": float(step if resume_step is None else 10 * step)})
        tracker.close()
    assert _scalars(tmp_path / "tensorboard", "reward") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_tensorboard_says_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from upslope.report import open_trackers\n"
        "(t,) = open_trackers(['tensorboard'], Path(sys.argv[1]), {})\n"
        "t.log(1, {'x': float('inf')}); t.close()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tensorbord", "; did you mean 'tensorboard'?"), ("wanbd", "; did you mean 'wandb'?"), ("xyz", "")],
)
def test_an_unknown_tracker_is_refused_with_the_nearest_name(tmp_path, name, hint):
    with pytest.raises(RecipeError) as error:
        open_trackers(["none", name], tmp_path, {})
    assert str(error.value) == f"unknown tracker {name!r}: choose from tensorboard, wandb, mlflow, none{hint}"
    assert list(tmp_path.iterdir()) == []


def test_none_is_none(tmp_path):
    assert open_trackers([], tmp_path, {}) == open_trackers(["none"], tmp_path, {}) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=rf"upslope\[{name}\]"):
        open_trackers([name], tmp_path, {})


def test_wandb_goes_on_with_the_same_run_and_its_own_step_axis(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        define_metric=lambda *names, **options: calls.append(("axis", names, options)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
    )
    wandb = SimpleNamespace(init=lambda **options: calls.append(("init", options)) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for _ in range(2):
        (tracker,) = open_trackers(["wandb"], tmp_path, {"seed": 1}, resume_step=4)
        tracker.log(5, {"reward": torch.tensor(0.5), "note": "text"})
        tracker.close()
    assert calls[1:4] == [("axis", ("*",), {"step_metric": "step"}), ("log", {"reward": 0.5, "step": 5}), ("finish",)]
    first, second = calls[0][1], calls[4][1]
    assert first == second
    assert (first["name"], first["config"], first["resume"]) == (tmp_path.name, {"seed": 1}, "allow")
    assert first["id"] == (tmp_path / "wandb_id").read_text()


def test_mlflow_goes_on_with_the_same_run_and_logs_settings_once(tmp_path, monkeypatch):
    calls = []
    mlflow = SimpleNamespace(
        start_run=lambda **options: (
            calls.append(("start", options)) or SimpleNamespace(info=SimpleNamespace(run_id="r1"))
        ),
        log_params=lambda params: calls.append(("params", params)),
        log_metrics=lambda values, step: calls.append(("metrics", step, values)),
        end_run=lambda: calls.append(("end",)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for step in (1, 2):
        (tracker,) = open_trackers(["mlflow"], tmp_path, {"loss": {"clip": 0.2}, "seed": 1})
        tracker.log(step, {"reward": 0.5, "note": "text"})
        tracker.close()
    name = tmp_path.name
    assert calls == [
        ("start", {"run_id": None, "run_name": name}),
        ("params", {"loss.clip": 0.2, "seed": 1}),
        ("metrics", 1, {"reward": 0.5}),
        ("end",),
        ("start", {"run_id": "r1", "run_name": name}),
        ("metrics", 2, {"reward": 0.5}),
        ("end",),
    ]
