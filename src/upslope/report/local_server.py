"""A server for this machine's user alone: who may ask, and how an answer is sent."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from upslope.errors import RecordError

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page's own policy stands in the page
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_LARGEST_BODY = 1 << 16


class LocalServer(ThreadingHTTPServer):
    """Serves actions at `address`, which holds a secret token, on 127.0.0.1 only.

    actions: what stands behind the token, by method and path: `{("GET", ""): f, ("POST", "stop"): g}`.

    Another site that the user has open can neither read nor post: the token must be right, Host must name this server
    (a foreign name that resolves to 127.0.0.1 does not), and an Origin, which a post must have, must be this server's.
    Raises: RecordError when the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, actions: Mapping[tuple[str, str], Callable[[Exchange], None]], *, port: int) -> None:
        self.actions = actions
        self.token = secrets.token_urlsafe(24)
        self.closing = threading.Event()
        try:
            super().__init__(("127.0.0.1", port), Exchange)
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


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: LocalServer
    server_version = "upslope"
    sys_version = ""
    timeout = 60.0

    def do_GET(self) -> None:
        """Answer where the asker may ask, and for what there is."""
        self._answer()

    def do_POST(self) -> None:
        """Answer where the asker may post, and to what there is."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""

    def posted(self) -> dict[str, Any] | None:
        """The JSON object that was posted; None where it is none, or too long."""
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and int(length) <= _LARGEST_BODY):
            return None
        try:
            value = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def send_json(self, status: HTTPStatus, value: Mapping[str, Any]) -> None:
        """The answer as JSON."""
        self.send(status, json.dumps(value).encode(), "application/json")

    def send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        """The whole answer."""
        self.begin(status, kind, length=len(body))
        self.wfile.write(body)

    def begin(self, status: HTTPStatus, kind: str, *, length: int | None = None) -> None:
        """The head of an answer; what is written to `wfile` follows it."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self) -> None:
        asked = self._asked()
        action = None if asked is None else self.server.actions.get((self.command, asked))
        if not self._is_ours() or action is None:
            self.send(HTTPStatus.FORBIDDEN, b"not allowed", "text/plain")
        else:
            action(self)

    def _asked(self) -> str | None:
        """What is asked for behind the token; None where the token is wrong."""
        token, _, rest = urlsplit(self.path).path.removeprefix("/").partition("/")
        return rest if secrets.compare_digest(token.encode(), self.server.token.encode()) else None

    def _is_ours(self) -> bool:
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host not in self.server.hosts or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return False
        return origin == f"http://{host}" if origin or self.command == "POST" else True
