"""`upslope rate`: in a browser by keyboard, and by hand what a browser would not send."""

import http.client
import json
import signal
import threading
import time

import pytest
import run_pages
from run_pages import HOSTILE, chat, rollout
from test_live_page import ended, upslope

from upslope.errors import RecordError
from upslope.records import Prompt
from upslope.report.rating_server import RatingServer
from upslope.report.ratings import Ratings
from upslope.report.run import Run

LONG = "All the way to the sea, 一路到海边. " * 300


@pytest.fixture
def run(tmp_path):
    """Three prompts with two answers each: hostile, a chat with a long one, and other scripts with an empty one."""
    run = Run.create(tmp_path / "run", run_pages.recipe_toml())
    scripts = Prompt(3, "翻译 / مرحبا\n<b>🌄</b>")
    rows = [
        rollout(Prompt(1, HOSTILE), words=("plain &amp; <i>short</i>",)),
        rollout(Prompt(1, HOSTILE), sample=1, words=(HOSTILE,)),
        rollout(chat(2, "Where to?"), group=1, words=("Line one,\n\n  line three.",)),
        rollout(chat(2, "Where to?"), group=1, sample=1, words=(LONG,), stop_reason="length"),
        rollout(scripts, group=2, words=("صباح الخير",)),
        rollout(scripts, group=2, sample=1, words=("",)),
    ]
    run.log_samples(1, rows, {"weights": ["w1"] * 6})
    return run


@pytest.fixture
def serve(run):
    """Starts servers of the run's page; they end with the test."""
    started = []

    def start(*, stars=False, rater="ann", seed=0):
        server = RatingServer(run, Ratings(run.folder / "ratings.jsonl"), stars=stars, rater=rater, seed=seed, port=0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


def lines(run):
    return [json.loads(line) for line in (run.folder / "ratings.jsonl").read_text().splitlines()]


def shown(page):
    """The texts on the page, left first."""
    return page.locator(".answer .text").all_text_contents()


def opened(page):
    """The page, once it asks."""
    page.locator("#progress", has_text=" of ").wait_for()
    return page


def press(page, key, progress):
    page.keyboard.press(key)
    page.locator("#progress", has_text=progress).wait_for()


def test_comparing_by_keyboard_through_undo_and_reload_to_the_end(run, serve, open_page):
    page = opened(open_page(serve().address))
    assert page.locator('[data-verdict="undo"]').is_disabled()
    page.keyboard.press("u")  # nothing to take back
    seen = [shown(page)]
    press(page, "ArrowLeft", "1 of 3")
    seen.append(shown(page))
    press(page, "t", "2 of 3")
    press(page, "u", "1 of 3")
    assert shown(page) == seen[1]
    page.reload()
    page.locator("#progress", has_text="1 of 3").wait_for()
    assert shown(page) == seen[1]
    press(page, "u", "0 of 3")  # the rating from before the reload
    assert shown(page) == seen[0]
    press(page, "ArrowRight", "1 of 3")
    press(page, "Control+s", "1 of 3")  # the browser's own
    press(page, "S", "2 of 3")
    seen.append(shown(page))
    page.click('[data-verdict="left"]')
    page.get_by_text("All 3 questions are answered").wait_for()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(100)
    written = lines(run)
    assert [line.get("verdict", "undo") for line in written] == ["left", "tie", "undo", "undo", "right", "skip", "left"]
    assert [[side["text"] for side in line["samples"]] for line in written[-3:]] == [
        [side.replace("(empty)", "") for side in pair] for pair in seen
    ]
    assert all(0 < line["seconds"] < 60 for line in written if line["kind"] == "rating")
    assert {side["weights"] for line in written[-3:] for side in line["samples"]} == {"w1"}


def test_stars_by_keyboard(run, serve, open_page):
    page = opened(open_page(serve(stars=True).address))
    for done, key in enumerate("5132s"):
        press(page, key, f"{done + 1} of 6")
    page.keyboard.press("6")
    page.keyboard.press("ArrowLeft")
    press(page, "4", "6 of 6")
    page.get_by_text('loss = "regression"').wait_for()
    assert [line["verdict"] for line in lines(run)] == [5, 1, 3, 2, "skip", 4]
    assert {len(line["samples"]) for line in lines(run)} == {1}


def test_whatever_a_sample_holds_is_shown_as_text(serve, open_page):
    """Markup, other scripts, line breaks and long texts stand as they are; what wrote them is not told."""
    page = open_page(serve(seed=2).address)
    found = {}
    for done in range(3):
        page.locator("#progress", has_text=f"{done} of 3").wait_for()
        found |= {text: page.locator(".prompt").text_content() for text in shown(page)}
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        told = page.locator("body").inner_text()
        assert not {"w1", "sample/1", "step"} & set(told.split())
        press(page, "s", f"{done + 1} of 3")
    assert found == {
        "plain &amp; <i>short</i>": HOSTILE,
        HOSTILE: HOSTILE,
        "Line one,\n\n  line three.": "systemBe brief.userWhere to?",
        LONG: "systemBe brief.userWhere to?",
        "صباح الخير": "翻译 / مرحبا\n<b>🌄</b>",
        "(empty)": "翻译 / مرحبا\n<b>🌄</b>",
    }
    assert page.evaluate("window.attacked") is None


def test_two_tabs_rate_a_question_once(run, serve, open_page):
    server = serve()
    one, other = open_page(server.address), open_page(server.address)
    for page in (one, other):
        page.locator("#progress", has_text="0 of 3").wait_for()
    press(one, "ArrowLeft", "1 of 3")
    press(other, "ArrowRight", "1 of 3")
    other.get_by_text("the first rating stands").wait_for()
    assert shown(one) == shown(other)
    assert [line["verdict"] for line in lines(run)] == ["left"]


def test_another_rater_is_asked_everything(run, serve, open_page):
    press(opened(open_page(serve().address)), "ArrowLeft", "1 of 3")
    page = opened(open_page(serve(rater="bob").address))
    press(page, "t", "1 of 3")
    assert [(line["rater"], line["question"]) for line in lines(run)] == [
        (rater, lines(run)[0]["question"]) for rater in ("ann", "bob")
    ]


def test_a_key_held_down_rates_once(run, serve, open_page):
    page = opened(open_page(serve().address))
    page.keyboard.down("s")
    page.locator("#progress", has_text="1 of 3").wait_for()
    for _ in range(3):
        page.keyboard.down("s")  # a repeat
    page.wait_for_timeout(200)
    assert page.locator("#progress").text_content() == "1 of 3"
    assert len(lines(run)) == 1


def test_a_hidden_window_is_not_looked_at(run, serve, open_page):
    page = opened(open_page(serve().address))
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });" \
        "document.dispatchEvent(new Event('visibilitychange')); }"  # fmt: skip
    page.evaluate(hide, True)
    page.wait_for_timeout(1500)
    page.evaluate(hide, False)
    started = time.monotonic()
    press(page, "s", "1 of 3")
    assert lines(run)[0]["seconds"] < time.monotonic() - started + 1.0


def test_what_cannot_be_saved_stays_asked(run, serve, open_page):
    """The store cannot be written, and then can: the page says so, keeps the question, and rates it in the end."""
    page = opened(open_page(serve().address))
    before = shown(page)
    (run.folder / "ratings.jsonl").unlink(missing_ok=True)
    (run.folder / "ratings.jsonl").mkdir()
    with page.expect_console_message(lambda said: "507" in said.text):
        page.keyboard.press("ArrowLeft")
    page.get_by_text("cannot write").wait_for()
    assert shown(page) == before
    (run.folder / "ratings.jsonl").rmdir()
    press(page, "ArrowLeft", "1 of 3")
    assert len(lines(run)) == 1


def test_samples_that_come_while_one_rates_are_asked_after_a_reload(run, serve, open_page):
    page = opened(open_page(serve().address))
    press(page, "s", "1 of 3")
    run.log_samples(2, [rollout(Prompt(4, "new"), words=(word,)) for word in ("a", "b")])
    page.reload()
    page.locator("#progress", has_text="1 of 4").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_needs_no_scrolling_sideways(serve, open_page, scheme):
    page = open_page(serve().address, color_scheme=scheme)
    page.set_viewport_size({"width": 380, "height": 700})
    for done in range(3):
        page.locator("#progress", has_text=f"{done} of 3").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator('[data-verdict="left"]').is_visible()
        press(page, "s", f"{done + 1} of 3")


# By hand


def ask(server, method, path, body=None, **headers):
    """(status, answer) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    own = {"Origin": f"http://127.0.0.1:{server.server_port}", **headers}
    sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, f"/{server.token}/{path}", body=sent, headers=own)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_only_ratings_of_what_was_asked_are_taken(run, serve):
    server = serve()
    question = json.loads(ask(server, "GET", "next")[1])["question"]
    good = {"question": question["id"], "verdict": "tie", "seconds": 2}
    assert [sorted(answer) for answer in question["answers"]] == [["cut", "text"]] * 2  # nothing of step or weights
    bad = [
        {"question": "other"},
        {"question": None},
        {"verdict": "best"},
        {"verdict": 3},
        {"verdict": True},
        {"verdict": []},
    ]
    bad += [{"seconds": -1}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"seconds": "2"}, {"seconds": None}]
    for change in bad:
        assert ask(server, "POST", "rate", good | change)[0] == 400, change
    for body in (b"", b"[1]", b"no json", b"[" * 60_000, b" " * 70_000):
        assert ask(server, "POST", "rate", body)[0] == 400
        assert ask(server, "POST", "undo", body)[0] == 400
    assert not (run.folder / "ratings.jsonl").exists()
    status, said = ask(server, "POST", "rate", good)
    assert (status, json.loads(said)["fresh"], json.loads(said)["rated"]) == (200, True, 1)
    status, said = ask(server, "POST", "rate", good)  # its answer was lost, so it is sent again
    assert (status, json.loads(said)["fresh"], json.loads(said)["rated"]) == (200, False, 1)
    assert len(lines(run)) == 1


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}])
def test_no_other_page_can_rate(run, serve, headers):
    server = serve()
    id = json.loads(ask(server, "GET", "next")[1])["question"]["id"]
    rating = {"question": id, "verdict": "tie", "seconds": 2}
    assert ask(server, "POST", "rate", rating, **headers) == (403, b"not allowed")
    assert ask(server, "GET", "rate")[0] == ask(server, "GET", "stop")[0] == ask(server, "POST", "next")[0] == 403
    assert not (run.folder / "ratings.jsonl").exists()


def test_a_run_without_two_answers_is_refused(tmp_path):
    run = Run.create(tmp_path / "run", run_pages.recipe_toml())
    run.log_samples(1, [rollout(Prompt(1, "say"))])
    options = {"rater": "ann", "seed": 0, "port": 0}
    with pytest.raises(RecordError, match="has not logged two different samples of one prompt"):
        RatingServer(run, Ratings(tmp_path / "r.jsonl"), stars=False, **options)
    RatingServer(run, Ratings(tmp_path / "r.jsonl"), stars=True, **options).server_close()


def test_the_command_goes_on_where_one_left_off(run, serve, open_page):
    press(opened(open_page(serve().address)), "ArrowLeft", "1 of 3")
    rating = upslope("rate", run.folder, "--port", "0", "--rater", "ann")
    try:
        press(opened(open_page(rating.stdout.readline().split()[-1])), "s", "2 of 3")
        rating.send_signal(signal.SIGINT)
        status, said = ended(rating, within_s=10)
    finally:
        rating.kill()
        rating.wait()
        rating.stdout.close()
    assert status == 0
    assert said.splitlines()[-1] == f"ratings in {run.folder / 'ratings.jsonl'}: 1 left, 1 skip"
