"""What goes into the page of a run, and that nothing in a run can get out of its place there."""

import base64
import hashlib
import json
import math
from html.parser import HTMLParser

import pytest
import run_pages

from upslope.cli.report import held_out, over_seeds, summary
from upslope.errors import CheckpointError, RecordError
from upslope.evaluation.intervals import mean_interval, paired_gain
from upslope.report import html
from upslope.report.curves import CHARTS, metrics_of, over_optimisation
from upslope.report.inspector import inspect
from upslope.report.run import Run
from upslope.report.summary import alarms, notes


class Reader(HTMLParser):
    """The page as a browser takes it apart: scripts by type, tags, and all addresses."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.tags, self.addresses, self.policy = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append([attributes.get("type", "program"), ""])
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1][1] += data

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")


def read(text):
    reader = Reader(text)
    return reader, json.loads(next(content for kind, content in reader.scripts if kind == "application/json"))


@pytest.fixture
def run(tmp_path):
    return run_pages.finished(tmp_path / "run")


def test_the_page_holds_every_number_of_the_run(run):
    _, data = read(html.page({"runs": [summary(run)], "live": False}, title="t"))
    (shown,) = data["runs"]
    assert shown["steps"] == [1, 2, 3, 4, 5]
    assert shown["metrics"]["reward"] == [step / 10 for step in range(1, 6)]
    assert {name: dict(zip(shown["steps"], column, strict=True)) for name, column in shown["metrics"].items()} == {
        name: values
        for name, values in run.metrics.items()
        if "/" not in name or not name.startswith(("evaluate", "finished"))
    }
    assert (shown["state"], shown["method"], shown["total_steps"]) == ("finished", "ppo", 5)
    assert shown["recipe"] == run.recipe_toml
    assert len(shown["rollouts"]) == 5 * 4 + 3 * 3


def test_held_out_results_are_those_of_the_intervals(run):
    found = summary(run)["held_out"]
    before, after = [float(i < 4) for i in range(40)], [float(i < 30) for i in range(40)]
    for name, interval in (
        ("before", mean_interval(before)),
        ("after", mean_interval(after)),
        ("gain", paired_gain(before, after)),
    ):
        assert found["gain"][name] == [interval.estimate, interval.low, interval.high]
    assert found["gain"]["num_prompts"] == 40
    assert [row[:2] for row in found["curve"]] == [[0, 0.1], [2, 0.375], [5, 0.75]]


def test_hostile_text_stays_text(tmp_path):
    """A completion, a prompt, a metric's name, an alarm and the folder's name try to end the script they lie in."""
    run = Run.create(tmp_path / run_pages.HOSTILE.replace("/", "\u2044"), run_pages.recipe_toml())
    hostile = run_pages.chat(0, run_pages.HOSTILE)
    run.log_samples(
        1,
        [run_pages.rollout(hostile, words=(run_pages.HOSTILE, "\ud800", "<!--"))],
        {"pieces": [[run_pages.HOSTILE, "\ud800", "<!--"]]},
    )
    run.log("train", step=1, **{f"reward/{run_pages.HOSTILE}": 1.0, "problem": run_pages.HOSTILE})
    run.log("alarm", step=1, name=run_pages.HOSTILE, state="begin", text=run_pages.HOSTILE)
    run.log(run_pages.HOSTILE, step=1, text=run_pages.HOSTILE)
    reader, data = read(html.page({"runs": [summary(run)], "live": False}, title=run.folder.name))
    assert [kind for kind, _ in reader.scripts] == ["application/json", "program", "program"]
    assert "img" not in reader.tags
    (shown,) = data["runs"]
    assert shown["rollouts"][0]["text"].startswith(run_pages.HOSTILE)
    assert shown["rollouts"][0]["prompt"][1] == ["user", run_pages.HOSTILE]
    assert shown["metrics"][f"reward/{run_pages.HOSTILE}"] == [1.0]
    assert shown["alarms"][0]["text"] == run_pages.HOSTILE


@pytest.mark.parametrize("live", [False, True])
def test_the_page_needs_nothing_else_and_runs_its_own_scripts_only(run, live):
    reader, _ = read(html.page({"runs": [], "live": live}, title="t"))
    assert reader.addresses == ["data:,"]
    programs = [content for kind, content in reader.scripts if kind == "program"]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in programs]
    allowed = dict(part.strip().split(" ", 1) for part in reader.policy.split(";"))
    assert allowed["script-src"].split() == hashes
    assert allowed["default-src"] == "'none'"
    assert allowed["connect-src"] == ("'self'" if live else "'none'")


def test_the_plotting_library_is_the_published_one():
    """uPlot 1.6.32 as npm has it, unchanged: sha256 of dist/uPlot.iife.min.js."""
    library = html._asset("vendor/uPlot.iife.min.js")
    assert (
        hashlib.sha256(library.encode()).hexdigest()
        == "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    )
    assert "MIT License" in html._asset("vendor/uPlot.LICENSE")


def test_scripts_write_no_html():
    for name in {*html._SCRIPTS, *html._RATING_SCRIPTS}:
        text = html._asset(name)
        assert not [
            word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(") if word in text
        ]


def test_a_metric_that_is_missing_or_not_finite_leaves_a_gap_and_a_note():
    steps = [
        {"step": 1, "kind": "train", "a": 1.0, "b": math.nan},
        {"step": 2, "kind": "train", "a": math.inf, "ok": True, "problem": "x"},
    ]
    assert metrics_of(steps) == {"a": [1.0, None], "b": [None, None]}
    assert notes(steps) == [[1, "not finite", "b is nan"], [2, "problem", "x"], [2, "not finite", "a is inf"]]


def test_reward_and_gold_stand_over_the_root_of_the_kl():
    """48 steps in any order are 24 points of two neighbours each; what lacks one of the three is none."""
    steps = [{"kl_row": float(n * n), "reward": 2.0 * n, "gold": -1.0 * n} for n in range(48)]
    odd = [
        {"kl_row": 1.0, "reward": 1.0},
        {"kl_row": math.nan, "reward": 1.0, "gold": 1.0},
        {"kl_row": 1.0, "gold": "x"},
    ]
    points = over_optimisation([*steps[::-1], *odd])
    assert points == [[2 * n + 0.5, 4 * n + 1.0, -2 * n - 0.5] for n in range(24)]
    assert over_optimisation(odd) == over_optimisation([]) == []
    assert over_optimisation([{"kl_row": -0.3, "reward": 1, "gold": 2}]) == [[0.0, 1.0, 2.0]]


def test_alarms_begin_and_end_by_name():
    def alarm(step, name, state):
        return {"kind": "alarm", "step": step, "name": name, "state": state, "text": f"{name} {state}"}

    events = [
        alarm(1, "kl", "begin"),
        alarm(2, "entropy", "begin"),
        alarm(4, "kl", "end"),
        alarm(6, "kl", "begin"),
        alarm(7, "gap", "end"),
    ]
    assert alarms(events) == [
        {"name": "kl", "text": "kl begin", "begin": 1, "end": 4},
        {"name": "entropy", "text": "entropy begin", "begin": 2, "end": None},
        {"name": "kl", "text": "kl begin", "begin": 6, "end": None},
    ]


def test_every_column_of_a_sample_is_one_number_an_action(run):
    samples = run.samples(step=3)
    rollouts, refused = inspect(samples)
    assert refused == 0
    for sample, shown in zip(samples, rollouts, strict=True):
        assert shown["logprobs"] == pytest.approx(sample["old_logprobs"], rel=1e-3)
        kl = [a - b for a, b in zip(sample["old_logprobs"], sample["ref_logprobs"], strict=True)]
        assert shown["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-12)
        assert shown["values"] == pytest.approx(sample["values"], rel=1e-3)
        assert shown["advantages"] == pytest.approx(sample["advantages"], rel=1e-3)
        assert shown["pieces"] == sample["pieces"]
        assert shown["score"] == pytest.approx(sum(sample["rewards"]), rel=1e-3)
        assert shown["terms"] == {"exact": pytest.approx(sample["metrics"]["exact"])}


def test_a_column_of_equal_numbers_is_one_number(run):
    (first, *_), _ = inspect([{**run.samples(step=1)[0], "advantages": [0.25] * 6}])
    assert first["advantages"] == 0.25


def test_without_critic_reference_and_token_texts_those_columns_are_none(tmp_path):
    run = Run.create(tmp_path / "run", run_pages.recipe_toml())
    run_pages.train(run, 1, critic=False, reference=False)
    (shown, *_), _ = inspect(
        [{k: v for k, v in run.samples()[0].items() if k not in ("pieces", "old_logprobs", "advantages")}]
    )
    assert (shown["kl"], shown["values"], shown["advantages"], shown["pieces"]) == (None, None, None, None)
    assert shown["logprobs"] == -0.5  # the engine's own, all equal


@pytest.mark.parametrize(
    "spoilt",
    [
        {"actions": 3},
        {"rewards": [1.0]},
        {"pieces": ["a"]},
        {"prompt": [{"role": "user"}]},
        {"metrics": None},
        {"values": ["x"] * 6},
        {"advantages": [1.0]},
        {"group": "one"},
        {"prompt_id": math.nan},
    ],
)
def test_a_sample_that_contradicts_itself_is_left_out_and_counted(run, spoilt):
    good, other = run.samples(step=1)[:2]
    rollouts, refused = inspect([{**good, **spoilt}, other])
    assert (len(rollouts), refused) == (1, 1)


def test_what_a_resume_took_back_is_not_shown(tmp_path):
    run = Run.create(tmp_path / "run", run_pages.recipe_toml())
    for step in (1, 2, 3):
        run_pages.train(run, step, rows=1)
    run.log_resume(1)
    run_pages.train(run, 2, rows=1)
    shown = summary(run)
    assert shown["steps"] == [1, 2]
    assert [one["step"] for one in shown["rollouts"]] == [1, 2]
    assert [note[:2] for note in shown["notes"]] == [[1, "resume"]]


def test_damaged_lines_are_counted_on_the_page(run):
    with run.events_path.open("a") as file:
        file.write('{"kind": "train", "step": "x"}\n[1]\n{"kind": 3, "step": 1}\n{"cut\n')
    assert summary(run)["damaged"] == 4


def test_no_page_of_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no run folder: it holds no recipe\.toml"):
        Run.open(tmp_path)
    with pytest.raises(RecordError, match="has logged nothing yet"):
        summary(Run.create(tmp_path / "run", run_pages.recipe_toml()))
    broken = Run.create(tmp_path / "broken", "this is [ no TOML")
    broken.log("train", step=1, reward=1.0)
    with pytest.raises(CheckpointError, match=r"recipe.toml is not TOML: .* is .*broken a run folder"):
        summary(broken)


def test_without_evaluations_there_is_no_held_out_result():
    assert held_out([]) == {"curve": [], "gain": None}


def test_what_one_looks_for_has_a_chart():
    wanted = (
        "reward reward/ kl entropy length clip_fraction explained_variance grad_norm gap_k3 gap_max tokens_per_s/ time/"
    )
    assert set(wanted.split()) <= {name for chart in CHARTS for name in chart.names}


def test_runs_that_differ_by_seed_alone_have_one_curve(tmp_path):
    """Three runs of one recipe and one of another; the interquartile mean of three is their mean."""
    runs = []
    for place, (seed, lr) in enumerate([(0, 1e-5), (1, 1e-5), (0, 1e-4), (2, 1e-5)]):
        recipe = run_pages.recipe_toml(seed=seed, lr=lr, folder=str(tmp_path / str(place)))
        runs.append(Run.create(tmp_path / str(place), recipe))
        for step in (0, 5):
            run_pages.evaluate(runs[-1], step, 10 + place + step)
    (group,) = over_seeds(runs)
    assert group["runs"] == [0, 1, 3]
    assert [step for step, *_ in group["curve"]] == [0, 5]
    assert [mean for _, mean, *_ in group["curve"]] == pytest.approx([(10 + 11 + 13) / 120, (15 + 16 + 18) / 120])
    assert all(low <= mean <= high for _, mean, low, high in group["curve"])
    assert over_seeds(runs[1:3]) == []
