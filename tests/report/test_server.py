"""The live page's server: who may ask, what they get, and the way to stop a run."""

import http.client
import json
import os
import signal
import socket
import threading

import pytest
import run_pages

from upslope.cli.report import held_out
from upslope.errors import CheckpointError, RecordError
from upslope.report.run import Run
from upslope.report.server import LiveServer


@pytest.fixture
def run(tmp_path):
    return run_pages.finished(tmp_path / "run")


@pytest.fixture
def server(run):
    with LiveServer(run, port=0, held_out=held_out) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(server, method="GET", path="", *, token=None, host=None, **headers):
    """(status, body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    own = {
        "Host": f"127.0.0.1:{server.server_port}" if host is None else host,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    try:
        connection.request(method, f"/{server.token if token is None else token}/{path}", headers=own)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def own_origin(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_the_page_is_given_to_whoever_knows_the_token(server):
    status, body, headers = ask(server)
    assert status == 200
    assert b'id="rollouts"' in body
    assert headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers
    assert len(server.token) >= 32


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    other = next((found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)), "127.0.0.1")
    if other.startswith("127."):
        pytest.skip("this machine has no address but its own")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((other, server.server_port), timeout=2)


@pytest.mark.parametrize(
    "request_",
    [
        {"token": ""},
        {"token": "wrong"},
        {"token": "%00"},
        {"host": "evil.example"},
        {"host": "evil.example:80"},
        {"host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"path": "recipe.toml"},
        {"path": "../"},
        {"path": "stop"},
    ],
)
@pytest.mark.parametrize("path", ["", "events"])
def test_everyone_else_is_refused(server, request_, path):
    status, body, _ = ask(server, **{"path": path, **request_})
    assert (status, body) == (403, b"not allowed")


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"host": "evil.example"}]
)
def test_no_other_page_can_stop_the_run(server, monkeypatch, headers):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process was signalled"))
    with server.run:
        assert ask(server, "POST", "stop", **headers)[0] == 403
        assert ask(server, "POST", "stop", token="wrong", Origin=own_origin(server))[0] == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_are_not_there(server, method):
    assert ask(server, method, "stop", Origin=own_origin(server))[0] == 501


def test_stop_signals_the_process_that_trains(server, monkeypatch):
    sent = []
    real = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)) if number else real(pid, number))
    with server.run:
        status, body, _ = ask(server, "POST", "stop", Origin=own_origin(server))
    assert (status, json.loads(body)) == (202, {"pid": os.getpid()})
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_stop_says_when_nobody_trains(server):
    status, body, _ = ask(server, "POST", "stop", Origin=own_origin(server))
    assert status == 409
    assert "no process is training" in json.loads(body)["problem"]


@pytest.mark.parametrize("pid", [0, -1, 1.5, "1", True, None])
def test_a_lock_that_names_no_single_process_names_nobody(tmp_path, pid):
    """os.kill takes 0 and below for whole groups of processes."""
    run = Run.create(tmp_path / "run", run_pages.recipe_toml())
    lock = {"pid": pid, "host": socket.gethostname(), "started": 0}
    (run.folder / "lock").write_text(json.dumps(lock))
    assert run.holder() is None
    with pytest.raises(CheckpointError, match="no process is training"):
        run.stop()


def test_a_run_on_another_host_cannot_be_stopped_from_here(tmp_path):
    run = Run.create(tmp_path / "run", run_pages.recipe_toml())
    (run.folder / "lock").write_text(json.dumps({"pid": 7, "host": "elsewhere", "started": 0}))
    with pytest.raises(CheckpointError, match="by process 7 on elsewhere: stop it there"):
        run.stop()


def test_updates_come_as_the_run_goes_on(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", f"/{server.token}/events")
    response = connection.getresponse()
    first = json.loads(response.readline().removeprefix(b"data: "))
    assert (first["whole"], first["run"]["steps"]) == (True, [1, 2, 3, 4, 5])
    assert response.readline() == b"\n"
    run_pages.train(server.run, 6)
    second = json.loads(response.readline().removeprefix(b"data: "))
    assert (second["whole"], second["run"]["steps"], len(second["run"]["rollouts"])) == (False, [6], 4)
    response.close()
    connection.close()


def test_closing_the_server_lets_open_pages_go(run):
    with LiveServer(run, port=0, held_out=held_out) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("GET", f"/{server.token}/events")
        response = connection.getresponse()
        response.readline()
        server.shutdown()
        thread.join()
    assert response.read() == b"\n"  # the rest of the first update, and the end
    connection.close()


def test_a_recipe_that_cannot_be_read_is_said_on_the_page(server):
    server.run.recipe_path.write_text("no [ TOML")
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", f"/{server.token}/events")
    response = connection.getresponse()
    assert "is not TOML" in json.loads(response.readline().removeprefix(b"data: "))["problem"]
    server.run.write_recipe(run_pages.recipe_toml())
    updates = (json.loads(line.removeprefix(b"data: ")) for line in response if line.startswith(b"data: "))
    first = next(update["run"] for update in updates if "run" in update)
    assert (first["steps"], len(first["rollouts"])) == ([1, 2, 3, 4, 5], 29)
    response.close()
    connection.close()


def test_a_taken_port_is_said(run, server):
    with pytest.raises(RecordError, match=f"port {server.server_port} cannot be served on: .* give another by --port"):
        LiveServer(run, port=server.server_port, held_out=held_out)
