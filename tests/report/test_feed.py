"""An open page, told of new steps only, ends up with what a page made afterwards holds."""

import pytest
import run_pages

from upslope.cli.report import held_out, summary
from upslope.report.feed import Feed, Tail
from upslope.report.run import Run


def merged(known, update):
    """The browser's merge, in Python: columns and rollouts go behind those that are there."""
    run = update["run"]
    if update["whole"]:
        return run
    length, added = len(known["steps"]), len(run["steps"])
    names = known["metrics"].keys() | run["metrics"].keys()
    metrics = {n: known["metrics"].get(n, [None] * length) + run["metrics"].get(n, [None] * added) for n in names}
    return {
        **run,
        "metrics": metrics,
        "steps": known["steps"] + run["steps"],
        "rollouts": known["rollouts"] + run["rollouts"],
    }


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", run_pages.recipe_toml())


def by_step(shown):
    return {**shown, "rollouts": sorted(shown["rollouts"], key=lambda one: (one["held_out"], one["step"]))}


def test_updates_add_up_to_the_page(run):
    feed, shown, sizes = Feed(run, held_out=held_out), None, []
    run_pages.evaluate(run, 0, 3)
    for step in range(1, 5):
        run_pages.train(run, step, critic=step > 2)
        update = feed.poll()
        shown = merged(shown, update)
        sizes.append(len(update["run"]["steps"]))
        assert feed.poll() is None
    run_pages.evaluate(run, 4, 20)
    shown = merged(shown, feed.poll())
    assert sizes == [1, 1, 1, 1]
    assert by_step(shown) == by_step(summary(run))


def test_a_resume_that_takes_steps_back_is_told_from_the_start(run):
    feed = Feed(run, held_out=held_out)
    for step in (1, 2, 3):
        run_pages.train(run, step, rows=1)
    assert feed.poll()["run"]["steps"] == [1, 2, 3]
    run.log_resume(1)
    update = feed.poll()
    assert (update["whole"], update["run"]["steps"], len(update["run"]["rollouts"])) == (True, [1], 1)
    run_pages.train(run, 2, rows=1)
    update = feed.poll()
    assert (update["whole"], update["run"]["steps"]) == (False, [2])


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path):
    feed = Feed(Run(tmp_path / "later"), held_out=held_out)
    assert feed.poll()["run"]["state"] == "not started"
    assert feed.poll() is None
    run = Run.create(tmp_path / "later", run_pages.recipe_toml())
    run_pages.train(run, 1)
    assert feed.poll()["run"]["steps"] == [1]


def test_a_change_of_state_alone_is_told(run):
    feed = Feed(run, held_out=held_out)
    assert feed.poll()["run"]["state"] == "stopped"
    with run:
        assert feed.poll()["run"]["state"].startswith("training by process")
    assert feed.poll()["run"]["state"] == "stopped"


def test_a_file_that_was_replaced_is_read_anew(run):
    feed = Feed(run, held_out=held_out)
    for step in (1, 2):
        run_pages.train(run, step)
    feed.poll()
    run.events_path.write_text('{"kind":"train","step":1,"reward":0.5}\n')
    update = feed.poll()
    assert (update["whole"], update["run"]["metrics"]["reward"]) == (True, [0.5])


def test_a_line_in_the_middle_of_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b'{"kind":"a","step":1}\n{"kind":"b","st')
    assert [record["kind"] for record in tail.read()] == ["a"]
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b'ep":2}\nnonsense\n')
    assert [record["kind"] for record in tail.read()] == ["b"]
    assert tail.damaged == 1
