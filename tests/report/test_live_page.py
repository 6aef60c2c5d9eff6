"""`upslope watch` beside a real training run of a tiny model: the page follows, and its button saves and stops."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import run_pages

from upslope.report.run import Run

RECIPE = """
[model]
name = "tiny-llama"
[task]
name = "arithmetic"
options = { num_eval = 4 }
[sampling]
max_new_tokens = 4
[training]
steps = 100000
prompts_per_step = 4
[evaluation]
every_steps = 100000
[run]
trackers = []
checkpoint_every_steps = "none"
"""
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def upslope(*arguments):
    """A command of upslope in a process of its own."""
    command = [sys.executable, "-c", "from upslope.cli.main import run; run()", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def ended(process, *, within_s):
    """(exit status, what it said); a process that does not end is killed."""
    try:
        process.wait(timeout=within_s)
        said = process.stdout.read()  # not communicate, which loses what readline has read ahead
    finally:
        process.kill()
        process.stdout.close()
    return process.returncode, said


def until(page, condition, *, within_s=60):
    """Wait until something is so on the page; its policy lets no waiting code into it."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        page.wait_for_timeout(50)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "run"


@pytest.fixture
def watched(folder):
    """The address of the page of a run that has not begun, and the process that serves it."""
    watching = upslope("watch", folder, "--port", "0")
    try:
        yield watching.stdout.readline().split()[-1], watching
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()


def test_the_page_follows_a_run_from_before_it_begins_until_it_is_stopped(folder, watched, open_page):
    address, watching = watched
    page = open_page(address)
    page.get_by_text("not started").wait_for()
    assert page.locator("#stop").is_disabled()

    training = upslope("train", folder.with_name("recipe.toml"), "--set", f"folder={folder}")
    try:
        page.locator('[data-title="Reward"]').wait_for(timeout=90_000)
        steps = page.locator('[data-name="steps"] b')
        before = int(steps.text_content().split()[0])
        until(page, lambda: int(steps.text_content().split()[0]) > before)
        found = page.locator("#count")
        count = int(found.text_content().split()[0])
        until(page, lambda: int(found.text_content().split()[0]) > count)
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#stop")
        page.get_by_text("asked to save and stop").wait_for()
        status, said = ended(training, within_s=60)
    finally:
        training.kill()
        training.wait()
        training.stdout.close()
    assert status == 130, said
    assert "continue with: upslope resume" in said
    run = Run.open(folder)
    assert [int(path.name[5:]) for path in run.checkpoints()] == [run.last_step]
    page.get_by_text("interrupted").wait_for()
    page.locator(".state", has_text="stopped").wait_for()
    assert page.locator("#stop").is_disabled()
    assert int(steps.text_content().split()[0]) == run.last_step

    watching.send_signal(signal.SIGINT)
    status, said = ended(watching, within_s=10)
    assert (status, said.splitlines()[-1]) == (0, "the page is closed")
    page.get_by_text("not connected").wait_for()


def test_an_update_leaves_the_reader_where_he_is(folder, watched, open_page):
    """New steps come while a rollout is read under filters: filters, choice and zoom stay."""
    run = Run.create(folder, run_pages.recipe_toml())
    for step in (1, 2, 3):
        run_pages.train(run, step)
    page = open_page(watched[0])
    page.locator(".row").nth(2).wait_for()
    page.fill("#step-to", "2")
    page.locator(".row").nth(5).click()
    chosen = page.locator("#detail").text_content()
    run_pages.train(run, 4)
    page.locator("#count", has_text="8 of 16 rollouts").wait_for()
    assert page.locator("#detail").text_content() == chosen
    assert page.locator('.row[aria-selected="true"]').count() == 1
    assert page.input_value("#step-to") == "2"


def test_what_changed_grows_with_a_run_that_evaluates_nothing(folder, watched, open_page):
    """A training prompt that comes again can be compared, from its rollout as well; later steps leave the choice."""
    run = Run.create(folder, run_pages.recipe_toml())
    run_pages.train(run, 1)
    page = open_page(watched[0])
    page.locator(".row").nth(3).wait_for()
    assert page.locator("#changes").is_hidden()
    run_pages.train(run, 2)
    page.locator("#count", has_text="8 of 8 rollouts").wait_for()
    page.locator("#changed-prompt").wait_for()
    page.locator(".row").nth(7).click()
    page.get_by_text("compare with another step").click()
    chosen = [page.locator(f"#{end} option:checked").text_content() for end in ("from", "to")]
    assert [text.split(" · ")[0] for text in chosen] == ["step 1", "step 2"]
    page.select_option("#from", index=2)
    chosen = page.locator("#from option:checked").text_content()
    run_pages.train(run, 3)
    page.locator("#count", has_text="12 of 12 rollouts").wait_for()
    assert page.locator("#from option").count() == 12
    assert page.locator("#from option:checked").text_content() == chosen


def test_ctrl_c_ends_the_page_at_once(watched):
    address, watching = watched
    urllib.request.urlopen(address).close()  # it serves, so it has said all that it says
    watching.send_signal(signal.SIGINT)
    started = time.monotonic()
    status, said = ended(watching, within_s=10)
    assert status == 0
    assert time.monotonic() - started < 8  # on a busy machine; the page's heartbeat comes every 10 s
    assert said == "Ctrl-C ends the page; training goes on.\nthe page is closed\n"
