"""`upslope report`: the file it writes, and what it says where there is nothing to write."""

import sys

import pytest

from upslope.cli.main import run as command_line

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
samples_per_evaluation = 3
"""


@pytest.fixture
def upslope(capsys, monkeypatch):
    """Runs a command in this process by the entry point: (exit status, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["upslope", *map(str, arguments)])
        status = 0
        capsys.readouterr()
        try:
            command_line()
        except SystemExit as exit_:
            status = exit_.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


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


def test_report_writes_one_page_into_the_run(upslope, trained):
    assert upslope("report", trained) == (0, f"{trained}/report.html\n", "")
    text = (trained / "report.html").read_text()
    assert "<title>run · upslope</title>" in text
    assert text.count("<script") == 3


def test_report_lays_several_runs_over_each_other(upslope, trained, tmp_path):
    page = tmp_path / "both.html"
    assert upslope("report", trained, trained, "-o", page) == (0, f"{page}\n", "")
    assert page.read_text().count('"total_steps":2') == 2


def test_report_says_what_is_no_run(upslope, trained, tmp_path):
    status, _, error = upslope("report", tmp_path)
    assert (status, error) == (2, f"error: {tmp_path} is no run folder: it holds no recipe.toml\n")
    (tmp_path / "recipe.toml").write_text("")
    status, _, error = upslope("report", tmp_path)
    assert (status, error) == (2, f"error: {tmp_path} has logged nothing yet, so there is nothing to report\n")
    status, _, error = upslope("report", trained, "-o", tmp_path / "missing" / "page.html")
    assert status == 2
    assert error.startswith(f"error: cannot write {tmp_path}/missing/page.html: No such file or directory")


def test_a_run_keeps_the_rollouts_and_token_texts_that_the_page_shows(trained):
    """Held-out prompts before and after, the same ones; each row's tokens join to its text and its end."""
    from upslope.report.run import Run

    run = Run.open(trained)
    held_out = run.samples(kind="held_out")
    assert [(one["step"], one["prompt_id"]) for one in held_out[:3]] == [(0, one["prompt_id"]) for one in held_out[3:]]
    assert [one["step"] for one in held_out] == [0, 0, 0, 2, 2, 2]
    for one in run.samples() + held_out:
        assert len(one["pieces"]) == len(one["actions"])
        assert "".join(one["pieces"]).removesuffix("<eos>").replace("<pad>", "").replace("<unk>", "") == one["text"]
