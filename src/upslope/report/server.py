"""The live page of one run, served to this machine's user alone."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from upslope.errors import CheckpointError, RecordError, UpslopeError
from upslope.report.feed import Feed
from upslope.report.html import inert_json, page
from upslope.report.run import Run
from upslope.report.summary import HeldOut

_POLL_S = 0.5
_HEARTBEAT_S = 10.0  # a silent line now and then: a page that was closed is then noticed
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page's own policy stands in the page
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LiveServer(ThreadingHTTPServer):
    """Serves the page of a run at `address`, which holds a secret token, on 127.0.0.1 only.

        GET  /TOKEN/        the page
        GET  /TOKEN/events  updates, as server-sent events
        POST /TOKEN/stop    asks the training process to save and stop

    Another site that the user has open can neither read nor post: the token must be right, Host must name this server
    (a foreign name that resolves to 127.0.0.1 does not), and an Origin, which a post must have, must be this server's.
    Raises: RecordError when the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, run: Run, *, port: int, held_out: HeldOut) -> None:
        self.run = run
        self.held_out = held_out
        self.token = secrets.token_urlsafe(24)
        self.closing = threading.Event()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise RecordError(f"port {port} cannot be served on: {error.strerror}; give another by --port") from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> frozenset[str]:
        """How a browser may name this server."""
        return frozenset({f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"})

    def server_close(self) -> None:
        """Stop serving; pages that are open are let go."""
        self.closing.set()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed in mid-answer is no error; anything else is shown."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version = "upslope"
    sys_version = ""
    timeout = 60.0

    def do_GET(self) -> None:
        """The page, and its updates."""
        self._answer({"": self._page, "events": self._events})

    def do_POST(self) -> None:
        """The stop button."""
        self._answer({"stop": self._stop})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""

    def _answer(self, actions: dict[str, Callable[[], None]]) -> None:
        asked = self._asked()
        action = None if asked is None else actions.get(asked)
        if not self._is_ours() or action is None:
            self._send(HTTPStatus.FORBIDDEN, b"not allowed", "text/plain")
        else:
            action()

    def _asked(self) -> str | None:
        """What is asked for behind the token; None where the token is wrong."""
        token, _, rest = urlsplit(self.path).path.removeprefix("/").partition("/")
        return rest if secrets.compare_digest(token.encode(), self.server.token.encode()) else None

    def _is_ours(self) -> bool:
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host not in self.server.hosts or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return False
        return origin == f"http://{host}" if origin or self.command == "POST" else True

    def _page(self) -> None:
        html = page({"runs": [], "live": True}, title=f"{self.server.run.folder.resolve().name} · upslope")
        self._send(HTTPStatus.OK, html.encode(), "text/html; charset=utf-8")

    def _events(self) -> None:
        """One update after another until the page is closed or the server is."""
        self._begin(HTTPStatus.OK, "text/event-stream")
        feed = Feed(self.server.run, held_out=self.server.held_out)
        silent_s = 0.0
        while not self.server.closing.is_set():
            try:
                update: dict[str, Any] | None = feed.poll()
            except UpslopeError as error:  # a recipe in mid-copy, say: the page shows it, and all once it can be read
                update, feed = {"problem": str(error)}, Feed(self.server.run, held_out=self.server.held_out)
            if update is not None:
                self.wfile.write(f"data: {inert_json(update)}\n\n".encode())
            elif silent_s >= _HEARTBEAT_S:
                self.wfile.write(b":\n\n")
            silent_s = 0.0 if update is not None or silent_s >= _HEARTBEAT_S else silent_s + _POLL_S
            self.server.closing.wait(_POLL_S)

    def _stop(self) -> None:
        try:
            owner = self.server.run.stop()
        except CheckpointError as error:
            self._send_json(HTTPStatus.CONFLICT, {"problem": str(error)})
        else:
            self._send_json(HTTPStatus.ACCEPTED, {"pid": owner.pid})

    def _send_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._begin(status, kind, length=len(body))
        self.wfile.write(body)

    def _begin(self, status: HTTPStatus, kind: str, *, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
