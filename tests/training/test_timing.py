"""What a step says of its own time, on small real runs."""

import time

import pytest
import torch

import upslope
from upslope.errors import KernelError
from upslope.kernels import linear
from upslope.training.timing import time_metrics, timed

SETTINGS = {
    "model": "tiny-llama",
    "steps": 2,
    "prompts_per_step": 2,
    "max_new_tokens": 4,
    "isolation": "none",
    "trackers": (),
    "checkpoint_every_steps": None,
    "samples_per_step": 6,
}


def slow(completion):
    time.sleep(0.02)
    return float(len(completion))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = upslope.Task(prompts=["one", "another"], reward=slow)
    folder = tmp_path_factory.mktemp("timing") / "run"
    return upslope.train(task=task, algorithm="grpo", kl="loss", kl_estimator="k3", kl_coef=0.1, epochs=2,
                         group_size=3, run=folder, **SETTINGS)  # fmt: skip


def test_the_parts_of_a_step_sum_to_the_step(run):
    for step in run.history():
        parts = {name: value for name, value in step.items() if name.startswith("time/")}
        assert parts.keys() == {
            f"time/{part}"
            for part in (
                *("prefill", "decode", "sample", "reward", "score", "reference"),
                *("forward", "backward", "optimiser", "load", "other"),
            )
        }
        assert min(parts.values()) >= 0
        assert sum(parts.values()) == pytest.approx(step["step_s"], rel=1e-9)
        assert step["time/reward"] >= 6 * 0.02, "six samples, each of which the reward sleeps over"


def test_tokens_per_second_count_what_each_phase_computes(run):
    """Against the samples themselves: distinct prompts once, all actions, and whole rows in each of two epochs."""
    step = run.history()[-1]
    samples = run.samples(step["step"])
    assert len(samples) == 6
    sampled = sum(len(sample["actions"]) for sample in samples)
    prompts = {tuple(sample["tokens"][: -len(sample["actions"])]) for sample in samples}
    assert len(prompts) == 2
    trained = 2 * sum(len(sample["tokens"]) for sample in samples)
    update_s = sum(step[f"time/{part}"] for part in ("score", "reference", "forward", "backward", "optimiser"))
    assert step["tokens_per_s"] == pytest.approx(sampled / step["rollout_s"])
    assert step["tokens_per_s/step"] == pytest.approx(sampled / step["step_s"])
    assert step["tokens_per_s/prefill"] == pytest.approx(sum(map(len, prompts)) / step["time/prefill"])
    assert step["tokens_per_s/decode"] == pytest.approx(sampled / (step["time/decode"] + step["time/sample"]))
    assert step["tokens_per_s/update"] == pytest.approx(trained / update_s)


def test_updates_that_a_large_kl_left_out_are_not_counted_as_tokens(tmp_path):
    task = upslope.Task(prompts=["one", "another"], reward=slow)
    given = {**SETTINGS, "steps": 1, "lr": 0.05, "optimizer.warmup_steps": 0}
    run = upslope.train(task=task, algorithm="ppo", epochs=6, group_size=3, kl_stop=1e-4, run=tmp_path / "run", **given)
    (step,) = run.history()
    assert step["updates"] < 6
    tokens = step["updates"] * sum(len(sample["tokens"]) for sample in run.samples(1))
    spent = sum(step.get(f"time/{part}", 0.0) for part in ("score", "reference", "forward", "backward", "optimiser"))
    assert step["tokens_per_s/update"] == pytest.approx(tokens / spent)


def test_phases_without_time_or_tokens_have_no_rate():
    metrics = time_metrics({"prefill": 0.5, "forward": 1.0, "other": 0.5}, {"prefill": 10, "update": 0})
    assert metrics["tokens_per_s/prefill"] == 20.0
    assert not {"tokens_per_s/decode", "tokens_per_s/update", "tokens_per_s/step"} & metrics.keys()
    assert metrics["step_s"] == 2.0


def test_time_under_no_span_is_other():
    started = time.perf_counter()
    with timed() as seconds:
        torch.ones(10).sum()
        time.sleep(0.01)
    assert 0.01 <= seconds["other"] <= time.perf_counter() - started
    assert seconds.keys() == {"other"}


def test_the_log_says_what_computes_the_run(run):
    (event,) = run.events("kernels")
    assert event["step"] == 0
    assert event["decoder"] == "llama-like"
    assert event["linear"] in ("native", "onednn", "torch") or ", because " in event["linear"]
    ways = {"update_rows": "packed", "update_prompts": "shared", "update_head": "in chunks"}
    assert {name: event[name] for name in ways} == ways
    assert event["update"] in ("onednn", "torch")


def test_the_log_says_why_the_slower_kernels_sample(tmp_path, monkeypatch):
    def fails():
        raise KernelError("no C++ compiler is installed")

    monkeypatch.setattr(linear, "native", fails)
    task = upslope.Task(prompts=["say"], reward=slow)
    with pytest.warns(UserWarning, match=r"slower \w+ kernels, because no C\+\+ compiler"):
        run = upslope.train(task=task, run=tmp_path / "run", **SETTINGS)
    (event,) = run.events("kernels")
    assert event["linear"] == "onednn, because no C++ compiler is installed"


def test_a_supervised_step_is_timed_too(tmp_path):
    task = upslope.Task(prompts=[{"prompt": "say", "completion": "sea"}], reward=slow)
    run = upslope.train(task=task, method="supervised", run=tmp_path / "run", **SETTINGS)
    step = run.history()[-1]
    parts = {name: value for name, value in step.items() if name.startswith("time/")}
    assert parts.keys() == {f"time/{part}" for part in ("forward", "backward", "optimiser", "other")}
    assert sum(parts.values()) == pytest.approx(step["step_s"], rel=1e-9)
