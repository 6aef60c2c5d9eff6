"""Trackers: what a real run logged is read back from each one's own files, and one that fails stops nothing."""

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import upslope
from upslope.errors import DependencyError, RecipeError
from upslope.report.run import Run
from upslope.report.trackers import TRACKERS, Trackers, check_trackers, open_trackers

EXTRAS = ("wandb", "mlflow", "trackio")
pytestmark = pytest.mark.timeout(600)  # three trackers' packages start up beside ours, 90 s on a busy machine


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "run", "seed = 1\n") as run:
        yield run


def _scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_holds_the_numbers_and_only_these(run):
    trackers = open_trackers(["tensorboard"], run, {})
    trackers.log(1, {"reward": 0.5, "evaluate/kl": torch.tensor(0.25), "note": "text", "lengths": [1, 2]})
    trackers.log(2, {"reward": 1, "evaluate/kl": float("nan")})
    trackers.close()
    assert _scalars(run.folder / "tensorboard", "reward") == [(1, 0.5), (2, 1.0)]
    assert _scalars(run.folder / "tensorboard", "evaluate/kl")[0] == (1, 0.25)


def test_tensorboard_hides_the_steps_that_a_resumed_run_does_again(run):
    for resume_step, steps in ((None, range(1, 6)), (2, range(3, 5))):
        trackers = open_trackers(["tensorboard"], run, {}, resume_step=resume_step)
        for step in steps:
            trackers.log(step, {"reward": float(step if resume_step is None else 10 * step)})
        trackers.close()
    assert _scalars(run.folder / "tensorboard", "reward") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_tensorboard_says_nothing(tmp_path):
    code = (
        "import sys; from upslope.report import Run, open_trackers\n"
        "t = open_trackers(['tensorboard'], Run.create(sys.argv[1], ''), {})\n"
        "t.log(1, {'x': float('inf')}); t.close()"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tensorbord", "; did you mean 'tensorboard'?"), ("wanbd", "; did you mean 'wandb'?"), ("xyz", "")],
)
def test_an_unknown_tracker_is_refused_with_the_nearest_name(name, hint):
    with pytest.raises(RecipeError) as error:
        check_trackers(["none", name])
    assert str(error.value) == f"unknown tracker {name!r}: choose from tensorboard, wandb, mlflow, trackio, none{hint}"


def test_none_is_none(run):
    for names in ([], ["none"]):
        trackers = open_trackers(names, run, {})
        trackers.log(1, {"reward": 1.0})
        trackers.close()
    assert list(run.events()) == []
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "lock", "recipe.toml"]


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_names_the_extra_before_there_is_a_run(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=rf"upslope\[{name}\]"):
        upslope.train(model="no such model", run=tmp_path / "run", trackers=[name])
    assert list(tmp_path.iterdir()) == []


def test_every_extra_is_a_tracker_of_the_same_name():
    assert set(TRACKERS) == {*EXTRAS, "tensorboard", "none"}


# What fails


class Failing:
    """A tracker that raises in the methods named, and counts its calls."""

    def __init__(self, *failing):
        self.failing, self.calls = failing, []

    def log(self, step, values):
        self._called("log")

    def close(self):
        self._called("close")

    def _called(self, name):
        self.calls.append(name)
        if name in self.failing:
            raise OSError(f"{name}: no answer")


class Listening:
    def __init__(self):
        self.steps = []

    def log(self, step, values):
        self.steps.append(step)

    def close(self):
        self.steps.append("closed")


def problems(run):
    return [(event["step"], event["problem"]) for event in run.events("tracker_failed")]


@pytest.mark.parametrize("failing", [("log",), ("log", "close")])
def test_a_tracker_that_fails_in_log_is_closed_and_left_out(run, failing):
    broken, sound = Failing(*failing), Listening()
    trackers = Trackers(run, [broken, sound])
    with pytest.warns(UserWarning, match="Failing failed and is left out: OSError: log: no answer"):
        trackers.log(1, {})
    trackers.log(2, {})  # a second warning would be an error
    trackers.close()
    assert broken.calls == ["log", "close"]
    assert sound.steps == [1, 2, "closed"]
    assert problems(run) == [(1, "Failing failed and is left out: OSError: log: no answer")]


def test_a_tracker_that_fails_in_close_is_told(run):
    broken, sound = Failing("close"), Listening()
    trackers = Trackers(run, [sound, broken])
    trackers.log(3, {})
    with pytest.warns(UserWarning, match="Failing failed and is left out: OSError: close: no answer"):
        trackers.close()
    trackers.close()
    assert broken.calls == ["log", "close"]
    assert sound.steps == [3, "closed"]
    assert problems(run) == [(3, "Failing failed and is left out: OSError: close: no answer")]


def test_a_tracker_that_cannot_be_opened_is_left_out(run):
    """TensorBoard's folder is a file: its own error, for real."""
    (run.folder / "tensorboard").write_text("in the way")
    sound = Listening()
    with pytest.warns(UserWarning, match="tensorboard failed and is left out: FileExistsError") as told:
        trackers = open_trackers(["tensorboard"], run, {}, own=[sound], resume_step=4)
    trackers.log(5, {"reward": 1.0})
    assert len(told) == 1
    assert sound.steps == [5]
    assert [step for step, _ in problems(run)] == [4]


def test_an_interrupt_is_no_failure(run):
    class Interrupting:
        def log(self, step, values):
            raise KeyboardInterrupt

        close = log

    with pytest.raises(KeyboardInterrupt):
        Trackers(run, [Interrupting()]).log(1, {})


# Read back from each one's own files: a run of two steps, of which the second was done again by a resume to three


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The folder that `tracked_run.py` left, with every tracker that is installed."""
    root = tmp_path_factory.mktemp("tracked")
    names = [name for name in EXTRAS if importlib.util.find_spec(name)]
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": root / "trackio", "TRACKIO_PROJECT": "uphill"}
    offline |= {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}
    offline |= {name: root / name for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    command = [sys.executable, Path(__file__).with_name("tracked_run.py"), root, "tensorboard", *names]
    environment = {**os.environ, **{name: str(value) for name, value in offline.items()}}
    subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True)
    return root


def _installed(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'upslope[{name}]'")


def _logged(root, kind, name):
    """(step, value) of everything that the run's own log holds, what was done again included."""
    events = Run.open(root / "whole").events(kind, superseded=True)
    return [(event["step"], event[name]) for event in events if name in event]


def _expect_all(root, read):
    """Every step's numbers and both evaluations are those of the run's own log."""
    for name in ("reward", "length", "lr", "tokens_per_s", "time/decode"):
        expected = _logged(root, "train", name)
        assert [step for step, _ in expected] == [1, 2, 2, 3]
        assert read(name) == expected
    assert read("evaluate/metric") == _logged(root, "evaluate", "metric")


def test_wandb_offline(tracked):
    _installed("wandb")
    files = sorted((tracked / "whole" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {file.stem for file in files} == {f"run-{(tracked / 'whole' / 'wandb_id').read_text()}"}
    assert len(files) == 2
    runs = [list(_wandb_records(file)) for file in files]
    rows = [_items(record.history.item) for run in runs for record in run if record.HasField("history")]
    _expect_all(tracked, lambda name: [(row["step"], row[name]) for row in rows if name in row])
    for records, steps in zip(runs, (2, 3), strict=True):
        (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        assert (started.display_name, config["training"]["steps"]) == ("whole", steps)
        axis = next(record.metric for record in records if record.HasField("metric"))
        assert (axis.glob_name, axis.step_metric) == ("*", "step")


def _wandb_records(path):
    """The records of a .wandb file, which is LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, []
    while position + 7 <= len(data):
        if (left := -position % 32768) and left < 7:  # a record's header does not cross a block
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def _items(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _rows(path, query, *values):
    with sqlite3.connect(path) as database:
        return database.execute(query, values).fetchall()


def test_mlflow_in_sqlite(tracked):
    _installed("mlflow")
    path = tracked / "mlflow.db"
    own = (tracked / "whole" / "mlflow_id").read_text()
    assert _rows(path, "select run_uuid, status from runs where name = 'whole'") == [(own, "FINISHED")]
    query = "select step, value from metrics where run_uuid = ? and key = ? order by timestamp, step"
    _expect_all(tracked, lambda name: _rows(path, query, own, name))
    params = dict(_rows(path, "select key, value from params where run_uuid = ?", own))
    assert (params["training.steps"], params["algorithm.preset"]) == ("2", "rloo")


def test_mlflow_within_the_users_own_run(tracked):
    _installed("mlflow")
    path = tracked / "mlflow.db"
    ((user,),) = _rows(path, "select run_uuid from runs where name = 'the user''s own'")
    child = (tracked / "within" / "mlflow_id").read_text()
    assert _rows(path, "select value from tags where run_uuid = ? and key = 'mlflow.parentRunId'", child) == [(user,)]
    assert _rows(path, "select key from metrics where run_uuid = ?", user) == [("after",)]


def test_a_store_that_cannot_be_opened_costs_the_run_nothing(tracked):
    _installed("mlflow")
    run = Run.open(tracked / "without")
    ((step, problem),) = problems(run)
    assert step == 0
    assert problem.startswith("mlflow failed and is left out: ")
    assert run.last_step == 1
    assert run.model_path.is_dir()
    assert [step for step, _ in _scalars(run.folder / "tensorboard", "reward")] == [1]


def test_trackio_in_its_own_database(tracked):
    _installed("trackio")
    path, name = tracked / "trackio" / "uphill.db", (tracked / "whole" / "trackio_name").read_text()
    assert name.startswith("whole-")
    rows = _rows(path, "select step, metrics from metrics where run_name = ?", name)
    logged = [(step, json.loads(metrics)) for step, metrics in rows]
    _expect_all(tracked, lambda metric: [(step, metrics[metric]) for step, metrics in logged if metric in metrics])
    configs = [json.loads(config) for (config,) in _rows(path, "select config from configs where run_name = ?", name)]
    assert len(configs) == 1
    assert configs[0]["algorithm"]["preset"] == "rloo"
    assert len(_rows(path, "select distinct run_id from metrics")) == 1


def test_tensorboard_of_the_same_run(tracked):
    for name in ("reward", "length"):
        standing = Run.open(tracked / "whole").metrics[name]
        read = dict(_scalars(tracked / "whole" / "tensorboard", name))
        assert read == {step: torch.tensor(value).item() for step, value in standing.items()}
