"""`upslope compare` and `upslope evaluate --detect` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "evaluation" / "data"
LOGS = [next((DATA / name).glob("samples_*.jsonl")) for name in ("stories260k", "noisy")]
QUICK = ("--task", "arithmetic", "--num-prompts", "12", "--max-new-tokens", "3", "--metric", "reward")


def test_compare_says_prints_and_saves(upslope, tmp_path):
    status, out, err = upslope("compare", "tiny-llama", "tiny-gpt2", *QUICK, "--save", tmp_path / "found.md")
    assert (status, err) == (0, "")
    assert "tiny-gpt2" in out
    assert "on 12 prompts" in out
    assert "interval (t)" in out
    page = (tmp_path / "found.md").read_text()
    assert "| tiny-gpt2 | 0." in page
    status, out, _ = upslope("compare", "tiny-llama", "tiny-gpt2", *QUICK, "--json", "--temperature", "1")
    document = json.loads(out)
    assert status == 0
    assert document["names"] == ["tiny-llama", "tiny-gpt2"]
    assert document["common_numbers"] is True


def test_compare_of_a_model_with_itself_names_its_fallback(upslope):
    status, out, _ = upslope(
        "compare", "tiny-llama", "tiny-llama", *QUICK, "--margin", "2.9", "--detect", "0.5", "--bounds", "0", "3"
    )
    assert status == 0
    assert out.startswith("tiny-llama and tiny-llama are tied: they differ by less than 2.9")
    assert "note: most prompts show the same difference" in out
    assert "to find a difference of 0.5 in 80% of such comparisons: " in out


def test_select_prints_a_table_and_saves_a_page(upslope, tmp_path):
    """Three candidates, one of them a vote, on as few prompts as there may be; the page and JSON say the same."""
    asked = ("--task", "arithmetic", "--num-prompts", "40", "--max-new-tokens", "2", "--metric", "reward")
    models = ("tiny-llama", "tiny-gpt2", "tiny-llama+tiny-gpt2")
    status, out, err = upslope("select", *models, *asked, "--save", tmp_path / "found.html", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert [entrant["name"] for entrant in document["entrants"]] == list(models)
    assert document["winner"] == document["tied"][0]
    assert document["num_fresh_prompts"] == 10
    assert f"<b>{document['winner']} is chosen" in (tmp_path / "found.html").read_text()
    status, out, _ = upslope("select", *models, *asked)
    assert status == 0
    assert "tiny-llama+tiny-gpt2" in out
    assert upslope("select", "tiny-llama", *asked)[2].startswith("error: a choice needs two models at least")


def test_logs_are_compared_by_their_files(upslope):
    status, out, _ = upslope("compare", *LOGS, "--metric", "acc")
    assert status == 0
    assert out.startswith("noisy is worse than stories260k: acc -0.3333")
    assert "seconds" not in out
    assert "a log is answered already; leave out --look-every" in upslope("compare", *LOGS, "--look-every", "5")[2]
    assert "tiny-llama is no file" in upslope("compare", LOGS[0], "tiny-llama")[2]


def test_evaluate_writes_a_page(upslope, tmp_path):
    status, out, _ = upslope("evaluate", "tiny-llama", *QUICK[:6], "--save", tmp_path / "found.html")
    assert status == 0
    assert f"<b>{out.splitlines()[0]}</b>" in (tmp_path / "found.html").read_text()


def test_evaluate_plans_a_comparison(upslope):
    status, out, _ = upslope("evaluate", "tiny-llama", *QUICK[:6], "--detect", "0.02", "--power", "0.8")
    assert status == 0
    assert "to find a difference of 0.02 between two models in 80% of comparisons: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "z"), "there is no method 'z'"),
        (("--look-every", "5"), "an asymptotic sequence begins at 30 prompts"),
        (("--look-every", "5", "--method", "betting"), "needs bounds"),
        (("--cluster", "page"), "has no column 'page'"),
        (("--ensembles", "sum"), "there is no way to answer together 'sum'; it is vote or average"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(upslope, arguments, message):
    status, _, err = upslope("compare", "tiny-llama", "tiny-gpt2", *QUICK, *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command", [("compare", "no-model", "no-model"), ("select", "no-model"), ("evaluate", "no-model")]
)
def test_a_place_that_cannot_be_written_is_refused_before_any_model_is_loaded(upslope, tmp_path, command):
    status, _, err = upslope(*command, "--task", "arithmetic", "--save", tmp_path / "nowhere" / "found.md")
    assert status != 0
    assert f"there is no folder {tmp_path / 'nowhere'} that can be written to" in err
