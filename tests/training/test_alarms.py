"""Alarms: when each begins and ends, on series worked out by hand and in real runs, and that a resumed run agrees."""

import copy
import io
import random
import re
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from bandit import TableEngine, bandit_session
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from runs import StopAfter

import upslope
from upslope.cli.progress import LiveProgress
from upslope.report.run import Run
from upslope.training import policy_gradient
from upslope.training.alarms import RULES, Alarms, check

DOCS = Path(__file__).parents[2] / "docs" / "alarms.md"

# name: (metrics that are wrong, metrics that are right, what has no answer, steps in a row, the value that is wrong)
SERIES = {
    "equal_rewards": ({"equal_groups": 0.9}, {"equal_groups": 0.875}, {"samples": 0}, 5, 0.9),
    "never_ends": ({"terminated": 0.0}, {"terminated": 1 / 64}, {"reward": 1.0}, 5, 0.0),
    "truncation": ({"terminated": 0.75}, {"terminated": 0.875}, {"reward": 1.0}, 10, 0.25),
    "slow_reward": ({"reward_s": 1.0, "step_s": 2.5}, {"reward_s": 0.7, "step_s": 2.5}, {"step_s": 1.0}, 5, 0.4),
    "dropped_samples": ({"samples": 54, "dropped": 6}, {"samples": 55, "dropped": 5}, {"samples": 8}, 3, 0.1),
    "high_lr": ({"policy_kl": 0.06}, {"policy_kl": 0.04}, {"reward": 1.0}, 3, 0.06),
    "entropy_collapse": ({"entropy": 0.02}, {"entropy": 0.03}, {"reward": 1.0}, 10, 0.02),
    "engine_drift": ({"gap_k3": 0.006}, {"gap_k3": 1e-5}, {"reward": 1.0}, 3, 0.006),
    "value_divergence": ({"explained_variance": -1.5}, {"explained_variance": -0.4}, {"reward": 1.0}, 3, -1.5),
}


def changes(alarms, series):
    """(step, name, state) of every change, steps counted from 1."""
    return [(step, c.name, c.state) for step, metrics in enumerate(series, 1) for c in alarms.update(metrics)]


@pytest.mark.parametrize("name", SERIES)
def test_an_alarm_begins_after_enough_steps_in_a_row_and_ends_after_as_many(name):
    wrong, right, unknown, n, value = SERIES[name]
    series = [wrong] * (n - 1) + [right] + [wrong] * (n - 1) + [unknown] * 3 + [wrong]  # begins with the last
    begin = len(series)
    series += [right] * (n - 1) + [wrong] + [unknown] + [right] * n  # ends with the last
    own = [change for change in changes(Alarms(), series) if change[1] == name]  # all rows cut is two alarms
    assert own == [(begin, name, "begin"), (len(series), name, "end")]
    (alarm,) = [alarm for alarm in check(wrong) if alarm.name == name]
    assert (alarm.name, alarm.state, alarm.value) == (name, "begin", pytest.approx(value))
    assert alarm.text.endswith(f"(docs/alarms.md#{name})")
    assert name not in {alarm.name for alarm in check(right) + check(unknown)}


def test_every_alarm_has_its_series():
    drifts = {"reward_hacking", "length_drift", "repetition_drift", "reward_uncertainty"}  # in test_drift
    assert {rule.name for rule in RULES} == {*SERIES, "kl_runaway", *drifts}


def ramp(low, high):
    """Three steps low, four between, three high: ten steps whose first and last three have these means."""
    return [low] * 3 + [(low + high) / 2] * 4 + [high] * 3


@pytest.mark.parametrize(
    ("kl", "reward", "factor"),
    [
        (ramp(0.2, 0.5), ramp(1.0, 1.0), 2.5),
        (ramp(0.2, 0.5), ramp(1.0, 0.5), 2.5),
        (ramp(0.2, 0.5), ramp(1.0, 1.03), 2.5),  # a gain within a tenth of the standard deviation is none
        (ramp(0.2, 0.5), ramp(1.0, 1.05), None),  # paid for
        (ramp(0.2, 0.39), ramp(1.0, 1.0), None),  # not doubled
        (ramp(0.01, 0.09), ramp(1.0, 1.0), None),  # still close to the reference
        (ramp(-0.1, 0.2), ramp(1.0, 1.0), 20.0),  # k1 may be below 0: the start counts as 0.01
    ],
)
def test_kl_runs_away_when_it_doubles_without_a_gain(kl, reward, factor):
    series = [{"kl": a, "reward": b, "reward_std": 0.4} for a, b in zip(kl, reward, strict=True)]
    alarms = Alarms(series[:-1])
    assert alarms.update(series[-1]) == []  # the first of three steps
    alarms = Alarms(series)
    last = [alarms.update({**series[-1], "kl": kl[-1] * 2**step}) for step in (1, 2)]
    assert [[c.name for c in step] for step in last] == ([[], ["kl_runaway"]] if factor else [[], []])


def test_the_factor_of_the_kl_is_that_of_means_of_three():
    series = [{"kl": value, "reward": 1.0, "reward_std": 0.4} for value in (0.1, 0.2, 0.3, 9, 9, 9, 9, 0.5, 0.6, 1.0)]
    (rule,) = [rule for rule in RULES if rule.name == "kl_runaway"]
    assert rule.measure(series) == pytest.approx(3.5)
    assert rule.measure(series[1:]) is None
    assert rule.measure([{"reward": 1.0}, *series[1:]]) is None


def test_rewards_are_compared_over_the_batch_where_no_group_has_two():
    assert [a.name for a in check({"samples": 8, "reward_std": 0.0})] == ["equal_rewards"]
    assert check({"samples": 8, "reward_std": 1e-9}) == []
    assert check({"samples": 1, "reward_std": 0.0}) == []
    assert check({"samples": 8, "reward_std": 0.0, "equal_groups": 0.0}) == []


def test_a_fast_reward_is_never_slow_and_equal_scores_are_not_dropped_samples():
    assert check({"reward_s": 0.4, "step_s": 0.5}) == []
    assert check({"samples": 8, "dropped": 8, "dropped/equal scores": 8}) == []
    assert [a.value for a in check({"samples": 8, "dropped": 8, "dropped/equal scores": 6})] == [2 / 16]


def test_not_a_number_begins_nothing():
    assert changes(Alarms(), [{"entropy": float("nan"), "policy_kl": float("nan")}] * 30) == []
    assert [a.name for a in check({"gap_k3": float("inf")})] == ["engine_drift"]


def spelt_out(answers, n):
    """Steps at which an alarm changes: the last n answers since the last change all speak against its state."""
    found, on, since = [], False, []
    for step, answer in enumerate(answers, 1):
        since += [] if answer is None else [answer]
        if len(since) >= n and all(a is not on for a in since[-n:]):
            on, since = not on, []
            found.append((step, "begin" if on else "end"))
    return found


@given(st.lists(st.sampled_from([True, True, True, False, False, None]), max_size=120))
def test_any_series_changes_as_spelt_out(answers):
    metrics = {True: {"policy_kl": 0.1}, False: {"policy_kl": 0.0}, None: {}}
    found = changes(Alarms(), [metrics[answer] for answer in answers])
    assert [(step, state) for step, _, state in found] == spelt_out(answers, 3)


def test_the_documentation_holds_every_alarm_with_its_numbers():
    text = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \|.*\| (\S+) \| (\d+) \|$", text, flags=re.MULTILINE)
    assert [(name, anchor, float(limit), int(steps)) for name, anchor, limit, steps in rows] == [
        (rule.name, rule.name, rule.limit, rule.steps) for rule in RULES
    ]
    assert re.findall(r"^## (\w+)$", text, flags=re.MULTILINE) == [rule.name for rule in RULES]


# Real runs


def began(run):
    return [(event["step"], event["name"]) for event in run.events("alarm") if event["state"] == "begin"]


def bandit(tmp_path, settings, engine=None, **options):
    """The names of the alarms that begin in a real run over the table."""
    with ExitStack() as stack:
        session = bandit_session(tmp_path / "run", settings, stack=stack, **options)
        if engine is not None:
            session.engine = engine
            session.load_engine(0)
        policy_gradient.train(session)
    return {name for _, name in began(session.run)}


def test_a_run_that_learns_raises_no_alarm(tmp_path):
    assert bandit(tmp_path, {"lr": 0.03, "steps": 40, "prompts_per_step": 64, "preset": "rloo"}) == set()


def test_a_constant_reward(tmp_path):
    assert bandit(tmp_path, {"preset": "grpo", "steps": 6, "kl": "off"}, reward=lambda completion: 1.0) == {
        "equal_rewards"
    }


def test_equal_rewards_are_seen_before_dynamic_sampling_drops_them(tmp_path):
    assert bandit(tmp_path, {"preset": "dapo", "steps": 6}, reward=lambda completion: 1.0) == {"equal_rewards"}


def noise():
    """A reward that follows no rule, the same in every run."""
    draws = random.Random(3)
    return lambda completion: draws.random()


def test_a_policy_that_stops_exploring(tmp_path):
    assert "entropy_collapse" in bandit(tmp_path, {"preset": "ppo", "lr": 1.0, "steps": 20, "kl": "off"})


def test_a_policy_that_leaves_the_reference_for_nothing(tmp_path):
    """The reward teaches noise, against which this KL coefficient is no hold."""
    settings = {"preset": "grpo", "kl_coef": 1e-6, "lr": 0.1, "steps": 40, "group_size": 8}
    assert "kl_runaway" in bandit(tmp_path, settings, reward=noise())


def test_an_engine_with_stale_weights(tmp_path):
    class Stale(TableEngine):
        """It keeps the weights of the start."""

        def load(self, policy, *, version):
            if version == 0:
                self.policy = copy.deepcopy(policy)
            self.version = version

    assert "engine_drift" in bandit(tmp_path, {"preset": "rloo", "lr": 0.1, "steps": 20}, engine=Stale())


def test_a_critic_that_learns_too_fast(tmp_path):
    settings = {"algorithm": "ppo", "critic_lr": 3.0, "steps": 12, "warmup_steps": 0, "kl": "off", "value_clip": "none"}
    names = {name for _, name in began(tiny(tmp_path / "run", len_of, **settings))}
    assert "value_divergence" in names


def shouted(completion):
    """Fails on some random texts."""
    if len(completion) % 3 == 0:
        raise ValueError("a third")
    return float(len(completion))


def tiny(folder, reward, **settings):
    common = {"model": "tiny-gpt2", "algorithm": "rloo", "group_size": 4, "prompts_per_step": 4, "max_new_tokens": 6}
    common |= {"isolation": "none", "samples_per_step": 0, "trackers": [], "lr": 1e-5, "checkpoint_every_steps": "none"}
    task = upslope.Task(prompts=["sea", "sky", "fog"], reward=reward)
    return upslope.train(task=task, run=folder, **{**common, **settings})


def test_a_learning_rate_far_too_high(tmp_path):
    settings = {"algorithm": "ppo", "steps": 4, "kl": "off", "epochs": 8, "warmup_steps": 0}
    assert "high_lr" not in {name for _, name in began(tiny(tmp_path / "low", len_of, **settings, lr=1e-5))}
    assert "high_lr" in {name for _, name in began(tiny(tmp_path / "high", len_of, **settings, lr=3e-2))}


def test_a_reward_that_drops_samples(tmp_path):
    run = tiny(tmp_path / "run", shouted, steps=4)
    assert (3, "dropped_samples") in began(run)
    (event,) = [event for event in run.events("alarm") if event["name"] == "dropped_samples"]
    assert not any(name.startswith("alarm") for name in run.metrics)  # values of different quantities
    history = run.history()[2]
    assert event["value"] == history["dropped"] / 16 > 0.1


def test_a_slow_reward_is_told_in_the_progress_view_when_it_begins_and_ends(tmp_path):
    def slow(completions):
        slow.calls += 1
        time.sleep(0.6 if slow.calls <= 5 else 0.0)
        return [float(len(text)) for text in completions]

    slow.calls = 0
    shown = io.StringIO()
    progress = LiveProgress(Console(file=shown, width=500), total_steps=10)
    run = tiny(tmp_path / "run", slow, steps=10, trackers=[progress], max_new_tokens=2)
    changes = [(e["step"], e["state"]) for e in run.events("alarm") if e["name"] == "slow_reward"]
    assert changes == [(5, "begin"), (10, "end")]
    begin, end = [line for line in shown.getvalue().splitlines() if "slow_reward" in line]
    assert begin.startswith("step 5: alarm: slow_reward begins: the reward function takes ")
    assert begin.endswith("(docs/alarms.md#slow_reward)")
    assert end == "step 10: alarm: slow_reward is over: the reward function takes 0% of the step's time"


def told(run):
    """Every alarm event as it stands, but for its wall time."""
    return [{name: value for name, value in event.items() if name != "time"} for event in run.events("alarm")]


@pytest.mark.parametrize("lost", [False, True], ids=["from its last step", "from an earlier step"])
def test_a_resumed_run_tells_the_same_alarms(tmp_path, lost):
    """Truncation lasts from the start: its ten steps are counted across the resume; never_ends is not told twice."""
    settings = {"steps": 12, "checkpoint_every_steps": 4, "keep_last": 9, "max_new_tokens": 1, "samples_per_step": 1}
    whole = tiny(tmp_path / "whole", len_of, **settings)
    assert (10, "truncation") in began(whole)
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path / "run", len_of, **settings, trackers=[StopAfter(7)])
    if lost:
        shutil.rmtree(Run.open(tmp_path / "run").checkpoints()[-1])
    task = upslope.Task(prompts=["sea", "sky", "fog"], reward=len_of)
    resumed = upslope.resume(tmp_path / "run", task=task)
    assert told(resumed) == told(whole)


def len_of(completion):
    return float(len(completion))
