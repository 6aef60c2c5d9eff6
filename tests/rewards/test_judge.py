"""A model as the judge, against a server on 127.0.0.1 that answers well, with nonsense, late, or not at all."""

import contextlib
import json
import sqlite3
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cloudpickle
import pytest

from upslope.errors import RewardError
from upslope.rewards import RewardTerm, Scorer, endpoint, llm_judge
from upslope.rewards.endpoint import NonsenseError, UnreachableError
from upslope.tasks.loading import load_terms


class Server(ThreadingHTTPServer):
    """Answers each request by `answer(number, body)`: a text for a completion, or (status, headers, body)."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.bodies, self.headers, self.times = answer, [], [], []
        self.at_once, self.most, self.lock = 0, 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.at_once += 1
            server.most = max(server.most, server.at_once)
        answer = server.answer(number, body)
        with server.lock:
            server.at_once -= 1
        if isinstance(answer, str):
            answer = (200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}))
        status, headers, text = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked has gone
            self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts a server with the given answers."""
    servers = []

    def start(answer):
        server = Server(answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Pauses of a hundredth of their length."""
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE_S", 0.005)


def test_the_request_and_the_score(serve, monkeypatch):
    """A chat completion as OpenAI documents it: path, key, fields; and (8 - 1) / (10 - 1)."""
    monkeypatch.setenv("MY_KEY", "secret")
    server = serve(lambda *_: "It says 3 of 4. Score: 3\nScore: 8")
    judge = llm_judge(server.url + "/", "m", api_key="MY_KEY", template="{prompt}|{completion}|{topic}|{low}-{high}")
    assert judge.columns == ("topic",)
    assert judge.score("yes", [{"role": "user", "content": "Is it?"}], {"topic": "birds"}) == pytest.approx(7 / 9)
    message = {"role": "user", "content": "user: Is it?|yes|birds|1-10"}
    assert server.bodies == [{"model": "m", "messages": [message], "temperature": 0.0, "max_tokens": 512}]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    monkeypatch.delenv("MY_KEY")
    judge.score("no", "Is it?", {"topic": "{birds}"})
    assert "Authorization" not in server.headers[1]
    assert server.bodies[1]["messages"][0]["content"] == "Is it?|no|{birds}|1-10"


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 1", 0.0),
        ("**Score**: 10", 1.0),
        ("score = 5.5.", 0.5),
        ("Score: -1", None),
        ("Score: 11", None),
        ("good", None),
    ],
)
def test_scores_are_read_or_they_are_nonsense(serve, answer, score):
    judge = llm_judge(serve(lambda *_: answer).url, "m", retries=0)
    if score is not None:
        assert judge.score("a", "q") == score
        return
    with pytest.raises(NonsenseError, match=r"answers nonsense: (there is no score|the score .* is not on the scale)"):
        judge.score("a", "q")


FAILURES = {
    "nonsense": "no idea",
    "no json": (200, {}, "<html>"),
    "no choices": (200, {}, "{}"),
    "no text": (200, {}, '{"choices": [{"message": {"content": null}}]}'),
    "500": (500, {}, "down"),
    "503": (503, {}, ""),
    "429": (429, {"Retry-After": "0.05"}, "slow down"),
    "429 until": (429, {"Retry-After": formatdate(0, usegmt=True)}, "slow down"),
    "cut": (200, {"Content-Length": "1000"}, "{"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_is_asked_again(serve, failure):
    """Twice wrong, then right: the score, from three requests that are the same."""
    server = serve(lambda number, _: FAILURES[failure] if number < 2 else "Score: 10")
    assert llm_judge(server.url, "m", timeout_s=1.0).score("a", "q") == 1.0
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


def test_pauses_grow_and_retry_after_is_kept(serve, monkeypatch):
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: high)
    server = serve(lambda *_: (500, {}, ""))
    with pytest.raises(UnreachableError, match="answers 500"):
        llm_judge(server.url, "m", retries=2).score("a", "q")
    first, second = (after - before for before, after in zip(server.times, server.times[1:], strict=False))
    assert 0.1 <= first < 0.2 <= second
    server = serve(lambda *_: (429, {"Retry-After": "0.4"}, ""))
    with pytest.raises(UnreachableError, match="answers 429"):
        llm_judge(server.url, "m", retries=1).score("a", "q")
    assert server.times[1] - server.times[0] >= 0.4


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_asking_again_cannot_mend_is_said_at_once(serve, status):
    """Redirections as well: the key is for this host alone."""
    server = serve(lambda *_: (status, {"Location": "/elsewhere"}, "no such model"))
    with pytest.raises(RewardError, match=rf"refuses the request: {status} .*no such model"):
        llm_judge(server.url, "m").score("a", "q")
    assert len(server.bodies) == 1


def test_slow_and_down(serve):
    slow = serve(lambda *_: time.sleep(0.6) or "Score: 10")
    with pytest.raises(UnreachableError, match="does not answer"):
        llm_judge(slow.url, "m", timeout_s=0.1, retries=1).score("a", "q")
    assert len(slow.bodies) == 2
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9/v1/chat/completions does not answer"):
        llm_judge("http://127.0.0.1:9/v1", "m", retries=1).score("a", "q")


def test_cache_asks_once(serve, tmp_path):
    """By the whole request: another completion, model or option is another one. Nonsense is not kept."""
    server = serve(lambda number, _: "?" if number == 0 else f"Score: {number}")
    path = str(tmp_path / "new" / "judge.sqlite")
    judge = llm_judge(server.url, "m", cache=path)
    assert [judge.score("a", "q"), judge.score("a", "q")] == [0.0, 0.0]
    assert llm_judge(server.url, "m", cache=path).score("a", "q") == 0.0
    assert len(server.bodies) == 2
    assert judge.score("b", "q") == pytest.approx(1 / 9)
    assert llm_judge(server.url, "n", cache=path).score("a", "q") == pytest.approx(2 / 9)
    assert llm_judge(server.url, "m", cache=path, options={"seed": 1}).score("a", "q") == pytest.approx(3 / 9)
    assert llm_judge(server.url, "m", cache=path, pattern=r"(\d)$").score("b", "q") == pytest.approx(1 / 9)
    assert len(server.bodies) == 5
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (4,)
    connection.close()
    (tmp_path / "broken").write_bytes(b"no database" * 100)
    with pytest.raises(RewardError, match=r"cache .*broken cannot be used .*delete it"):
        llm_judge(server.url, "m", cache=str(tmp_path / "broken"))


def test_rate_and_concurrency_are_bounded(serve, rollout):
    server = serve(lambda *_: time.sleep(0.05) or "Score: 10")
    judge = llm_judge(server.url, "m", concurrency=3)
    with Scorer([RewardTerm(judge)], timeout_s=30, isolation="none") as scorer:
        assert {row.score for row in scorer.score([rollout(str(n)) for n in range(12)])} == {1.0}
    assert server.most == 3
    server = serve(lambda *_: "Score: 10")
    judge = llm_judge(server.url, "m", requests_per_minute=600)
    with Scorer([RewardTerm(judge)], timeout_s=30, isolation="none") as scorer:
        scorer.score([rollout(str(n)) for n in range(6)])
    assert server.times[-1] - server.times[0] >= 0.45  # five spaces of a tenth of a second, less the clock's jitter


def test_rows_without_a_score_are_dropped_and_counted(serve, rollout):
    """In the worker process: nonsense, a server that is down and one that is too slow are three reasons, never 0."""

    def answer(_, body):
        text = body["messages"][0]["content"]
        return "?" if "odd" in text else time.sleep(3) or "Score: 1" if "slow" in text else "Score: 10"

    server = serve(answer)
    terms = [
        RewardTerm(llm_judge(server.url, "m", retries=0), name="up"),
        RewardTerm(llm_judge("http://127.0.0.1:9", "m", retries=0), name="down"),
    ]
    with Scorer(terms[:1], timeout_s=2) as scorer:
        good, odd, slow = scorer.score([rollout("good"), rollout("odd"), rollout("slow")])
    assert good.rewards[-1] == 1.0
    assert (odd.rewards, odd.failure) == ((), "up: raised NonsenseError")
    assert (slow.rewards, slow.failure) == ((), "up: timed out after 2 s")
    with Scorer(terms, timeout_s=5) as scorer:
        (down,) = scorer.score([rollout("good")])
    assert (down.rewards, down.failure) == ((), "down: raised UnreachableError")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "must begin with http"),
        ({"template": "rate it"}, "no {completion}"),
        ({"template": "{completion} {"}, "cannot be read"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "Score"}, "0 groups"),
        ({"scale": [1, 1]}, r"scale \[1, 1\]"),
        ({"scale": [1, 2, 3]}, "scale"),
        ({"concurrency": 0}, "too low a concurrency"),
        ({"timeout_s": -1}, "too low a timeout_s"),
        ({"requests_per_minute": 0}, "too low a requests_per_minute"),
        ({"retries": -1}, "too low a retries: it must be above -1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(RewardError, match=message):
        llm_judge(**{"base_url": "http://x", "model": "m", **settings})


def test_by_name_and_through_the_pickle(serve):
    server = serve(lambda *_: "Score: 10")
    (term,) = load_terms([{"function": "llm_judge", "base_url": server.url, "model": "m", "weight": 0.5}])
    assert (term.name, term.shape) == ("llm_judge", "row")
    assert cloudpickle.loads(cloudpickle.dumps(term.function)).score("a", "q") == 1.0
