"""The live page of one run, served to this machine's user alone."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from upslope.errors import CheckpointError, UpslopeError
from upslope.report.feed import Feed
from upslope.report.html import inert_json, page
from upslope.report.local_server import Exchange, LocalServer
from upslope.report.run import Run
from upslope.report.summary import HeldOut

_POLL_S = 0.5
_HEARTBEAT_S = 10.0  # a silent line now and then: a page that was closed is then noticed


class LiveServer(LocalServer):
    """The page of a run while it trains.

        GET  /TOKEN/        the page
        GET  /TOKEN/events  updates, as server-sent events
        POST /TOKEN/stop    asks the training process to save and stop

    Raises: RecordError when the port is taken.
    """

    def __init__(self, run: Run, *, port: int, held_out: HeldOut) -> None:
        self.run = run
        self.held_out = held_out
        actions = {("GET", ""): self._page, ("GET", "events"): self._events, ("POST", "stop"): self._stop}
        super().__init__(actions, port=port)

    def _page(self, exchange: Exchange) -> None:
        html = page({"runs": [], "live": True}, title=f"{self.run.folder.resolve().name} · upslope")
        exchange.send(HTTPStatus.OK, html.encode(), "text/html; charset=utf-8")

    def _events(self, exchange: Exchange) -> None:
        """One update after another until the page is closed or the server is."""
        exchange.begin(HTTPStatus.OK, "text/event-stream")
        feed = Feed(self.run, held_out=self.held_out)
        silent_s = 0.0
        while not self.closing.is_set():
            try:
                update: dict[str, Any] | None = feed.poll()
            except UpslopeError as error:  # a recipe in mid-copy, say: the page shows it, and all once it can be read
                update, feed = {"problem": str(error)}, Feed(self.run, held_out=self.held_out)
            if update is not None:
                exchange.wfile.write(f"data: {inert_json(update)}\n\n".encode())
            elif silent_s >= _HEARTBEAT_S:
                exchange.wfile.write(b":\n\n")
            silent_s = 0.0 if update is not None or silent_s >= _HEARTBEAT_S else silent_s + _POLL_S
            self.closing.wait(_POLL_S)

    def _stop(self, exchange: Exchange) -> None:
        try:
            owner = self.run.stop()
        except CheckpointError as error:
            exchange.send_json(HTTPStatus.CONFLICT, {"problem": str(error)})
        else:
            exchange.send_json(HTTPStatus.ACCEPTED, {"pid": owner.pid})
