"""A profile against figures worked out by hand."""

import json

import pytest

from upslope.errors import RecordError
from upslope.report.profile import Profile
from upslope.report.run import Run


@pytest.fixture
def timed_run(tmp_path):
    run = Run.create(tmp_path / "run", "")
    with run:
        for step, (decode, other) in enumerate([(3.0, 1.0), (1.0, 1.0), (2.0, 2.0)], start=1):
            times = {"step_s": decode + other, "time/decode": decode, "time/other": other}
            run.log("train", step=step, **times, **{"tokens_per_s/decode": 10.0 * step})
    return run


def test_medians_of_a_part_and_its_share_of_all_time(timed_run):
    profile = Profile.of(timed_run)
    assert (profile.steps, profile.step_s) == (3, 4.0)
    assert profile.seconds == {"decode": 2.0, "other": 1.0}
    assert profile.shares == {"decode": 0.6, "other": 0.4}
    assert profile.tokens_per_s == {"decode": 20.0}


def test_the_files_hold_the_profile(timed_run):
    profile = Profile.of(timed_run)
    profile.write(timed_run)
    assert json.loads((timed_run.folder / "profile.json").read_text()) == {
        "steps": 3,
        "step_s": 4.0,
        "seconds": {"decode": 2.0, "other": 1.0},
        "shares": {"decode": 0.6, "other": 0.4},
        "tokens_per_s": {"decode": 20.0},
    }
    text = (timed_run.folder / "profile.md").read_text()
    assert "| decode    |    2.000 |  60.0% |" in text
    assert "| decode    |       20 |" in text


def test_steps_done_again_after_a_resume_count_once(timed_run):
    with timed_run:
        timed_run.log_resume(2)
        timed_run.log("train", step=3, **{"step_s": 8.0, "time/decode": 8.0, "time/other": 0.0})
    profile = Profile.of(timed_run)
    assert (profile.steps, profile.shares["decode"]) == (3, 12.0 / 14.0)


def test_a_run_without_times_has_no_profile(tmp_path):
    with pytest.raises(RecordError, match="logged the times of no step"):
        Profile.of(Run.create(tmp_path / "run", ""))
