"""`upslope compare` and `upslope evaluate --detect` as a user types them."""

from __future__ import annotations

import json

import pytest

QUICK = ("--task", "arithmetic", "--num-prompts", "12", "--max-new-tokens", "3", "--metric", "reward")


def test_compare_says_prints_and_saves(upslope, tmp_path):
    status, out, err = upslope("compare", "tiny-llama", "tiny-gpt2", *QUICK, "--save", tmp_path / "found.md")
    assert (status, err) == (0, "")
    assert "tiny-gpt2" in out
    assert "on 12 prompts" in out
    assert "interval (t)" in out
    page = (tmp_path / "found.md").read_text()
    assert "|  | tiny-llama | tiny-gpt2 |" in page
    status, out, _ = upslope("compare", "tiny-llama", "tiny-gpt2", *QUICK, "--json", "--temperature", "1")
    document = json.loads(out)
    assert status == 0
    assert document["names"] == ["tiny-llama", "tiny-gpt2"]
    assert document["common_numbers"] is True


def test_compare_of_a_model_with_itself_names_its_fallback(upslope):
    status, out, _ = upslope(
        "compare", "tiny-llama", "tiny-llama", *QUICK, "--margin", "0.9", "--detect", "0.1", "--bounds", "0", "3"
    )
    assert status == 0
    assert out.startswith("tiny-llama and tiny-llama are tied: they differ by less than 0.9")
    assert "note: every prompt shows the same difference" in out
    assert "to find a difference of 0.1 in 80% of such comparisons: 2 prompts" in out


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
    ],
)
def test_what_cannot_be_compared_is_one_sentence(upslope, arguments, message):
    status, _, err = upslope("compare", "tiny-llama", "tiny-gpt2", *QUICK, *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
