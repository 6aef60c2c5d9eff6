"""The run folder: what is written comes back, by step, also after a crash and a resume."""

import json
import math

import pytest
import torch

from upslope.errors import CheckpointError, ModelError, RecordError
from upslope.records import Prompt, Rollout
from upslope.report.run import Run


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", "seed = 1\n")


def _rollout(sample, text="4", actions=(5, 2)):
    return Rollout(
        prompt=Prompt(id=3, content="2 + 2 ="),
        group=0,
        sample=sample,
        tokens=(1, 9, *actions),
        actions=actions,
        positions=tuple(range(1, 1 + len(actions))),
        engine_logprobs=tuple(-0.5 for _ in actions),
        text=text,
        stop_reason="eos",
        rewards=(*(0.0 for _ in actions[:-1]), 1.0),
    )


def test_create_writes_the_recipe_and_open_finds_it(run):
    assert (run.folder / "recipe.toml").read_text() == "seed = 1\n"
    assert Run.open(str(run.folder)).recipe_toml == "seed = 1\n"
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "recipe.toml"]


def test_a_folder_that_holds_a_run_is_not_taken_over_unasked(run):
    run.log("train", step=1, reward=0.5)
    with pytest.raises(CheckpointError, match=r"already holds a run: continue it by `upslope resume"):
        Run.create(run.folder, "seed = 2\n")
    assert run.recipe_toml == "seed = 1\n"
    again = Run.create(run.folder, "seed = 2\n", exist_ok=True)
    assert again.recipe_toml == "seed = 2\n"
    assert again.metrics == {}
    assert [event["reward"] for event in again.events("train", superseded=True)] == [0.5]


def test_create_over_a_run_that_is_being_written_is_refused(run):
    with run, pytest.raises(CheckpointError, match="is being written"):
        Run.create(run.folder, "seed = 2\n", exist_ok=True)
    assert run.recipe_toml == "seed = 1\n"


def test_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere is no run folder: it holds no recipe\.toml"):
        Run.open(tmp_path / "nowhere")


@pytest.mark.parametrize("place", ["/proc/self/run", "{tmp}/file/run", "{tmp}/file"])
def test_read_only_folder_is_a_clear_error(tmp_path, place):
    """Even root cannot make folders in /proc, nor inside a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make the run folder"):
        Run.create(place.format(tmp=tmp_path), "")


def test_disk_full_in_the_recipe_names_it_and_keeps_the_old_one(run, file_size_limit):
    with file_size_limit(300), pytest.raises(CheckpointError, match=r"cannot write .*recipe\.toml: File too large"):
        Run.create(run.folder, "x" * 400, exist_ok=True)
    assert run.recipe_toml == "seed = 1\n"
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "recipe.toml"]


def test_metrics_and_history_are_by_step(run):
    run.log("train", step=1, reward=torch.tensor(0.25), note="warm-up", lengths=[1, 2])
    run.log("train", step=2, reward=0.5, kl=math.nan)
    run.log("evaluate", step=2, reward=0.75)
    assert run.metrics["reward"] == {1: 0.25, 2: 0.5}
    assert run.metrics["evaluate/reward"] == {2: 0.75}
    assert math.isnan(run.metrics["kl"][2])
    assert set(run.metrics) == {"reward", "kl", "evaluate/reward"}
    first, second = run.history()
    assert {k: v for k, v in first.items() if k != "time"} == {
        "step": 1,
        "reward": 0.25,
        "note": "warm-up",
        "lengths": [1, 2],
    }
    assert second["step"] == 2
    assert 0 <= second["time"] - first["time"] < 60
    assert [event["kind"] for event in run.events()] == ["train", "train", "evaluate"]


def test_after_a_resume_readers_take_the_newest_line_of_a_step(run):
    """A crash at step 5, a resume from step 2 that has reached 4: 3 and 4 are the new ones, 5 no longer stands."""
    for step in range(1, 6):
        run.log("train", step=step, reward=float(step))
        run.log_samples(step, [_rollout(0, text=f"old {step}")])
    before = (run.folder / "events.jsonl").read_bytes()
    run.log_resume(2)
    for step in (3, 4):
        run.log("train", step=step, reward=10.0 * step)
        run.log_samples(step, [_rollout(0, text=f"new {step}")])
    assert (run.folder / "events.jsonl").read_bytes().startswith(before)
    assert run.metrics["reward"] == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}
    assert [row["reward"] for row in run.history()] == [1.0, 2.0, 30.0, 40.0]
    assert [sample["text"] for sample in run.samples()] == ["old 1", "old 2", "new 3", "new 4"]
    assert [event["step"] for event in run.events("train")] == [1, 2, 3, 4]
    assert [event["step"] for event in run.events("train", superseded=True)] == [1, 2, 3, 4, 5, 3, 4]
    assert [event["step"] for event in run.events("resume")] == [2]
    assert run.last_step == 4


def test_without_a_resume_the_newest_line_of_a_step_still_counts(run):
    run.log("train", step=1, reward=1.0, other=3.0)
    run.log("train", step=1, reward=2.0)
    assert run.metrics["reward"] == {1: 2.0}
    assert [row["reward"] for row in run.history()] == [2.0]


def test_samples_come_back_with_their_per_action_numbers(run):
    rollouts = [_rollout(0, text="NaN"), _rollout(1, actions=(7,))]
    advantages = [torch.tensor([0.5, math.inf]), torch.tensor([-1.0])]
    run.log_samples(4, rollouts, {"advantages": advantages, "values": [[0.1, 0.2], [0.3]]})
    first, second = run.samples(step=4)
    assert first == {
        "kind": "sample",
        "step": 4,
        "prompt_id": 3,
        "group": 0,
        "sample": 0,
        "version": 0,
        "prompt": "2 + 2 =",
        "text": "NaN",
        "stop_reason": "eos",
        "tokens": [1, 9, 5, 2],
        "actions": [5, 2],
        "positions": [1, 2],
        "engine_logprobs": [-0.5, -0.5],
        "rewards": [0.0, 1.0],
        "metrics": {},
        "failure": None,
        "advantages": [0.5, math.inf],
        "values": [0.1, 0.2],
    }
    assert second["advantages"] == [-1.0]
    assert run.samples(step=5) == []
    assert len((run.folder / "samples.jsonl").read_text().splitlines()) == 2


def test_extras_that_do_not_match_the_rollouts_are_refused(run):
    with pytest.raises(RecordError, match="'values' has 1 entries for 2 rollouts at step 4"):
        run.log_samples(4, [_rollout(0), _rollout(1)], {"values": [[0.1, 0.2]]})
    assert run.samples() == []


@pytest.mark.parametrize("name", ["time", "kind"])
def test_a_value_named_like_an_events_own_is_refused(run, name):
    with pytest.raises(RecordError, match=f"every event has a '{name}' of its own"):
        run.log("train", step=1, **{name: 3.0})
    run.log("train", step=1, self=3.0)
    assert run.metrics == {"self": {1: 3.0}}


def test_damaged_lines_are_skipped_and_counted(run):
    run.log("train", step=1, reward=1.0)
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"kind":"train","st')
    reopened = Run.open(run.folder)
    assert reopened.metrics["reward"] == {1: 1.0}
    assert reopened.damaged_lines == 1


def test_checkpoints_are_listed_in_order_of_steps(run):
    for name in ("step-00000010", "step-00000009", ".tmp-1-1-step-00000011"):
        (run.checkpoints_path / name).mkdir()
    assert [path.name for path in run.checkpoints()] == ["step-00000009", "step-00000010"]


def test_load_model_gives_the_final_model(run):
    from transformers import LlamaConfig, LlamaForCausalLM

    with pytest.raises(ModelError, match="has no final model yet"):
        run.load_model()
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(run.model_path)
    loaded = run.load_model()
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=0)


def test_repr_says_where_how_far_and_what_came_of_it(run):
    assert repr(run).startswith(f"Run({str(run.folder)!r}): unfinished, 0 training steps\n")
    run.log("train", step=1, reward=0.125)
    run.log("train", step=2, reward=0.75, kl=0.01)
    assert "2 training steps" in repr(run)
    assert [line.split() for line in repr(run).splitlines()[1:3]] == [
        ["reward", "0.125", "->", "0.75"],
        ["kl", "nan", "->", "0.01"],
    ]
    run.model_path.mkdir()
    (run.model_path / "config.json").write_text(json.dumps({}))
    assert "finished" in repr(run).splitlines()[0]
