"""`upslope watch RUN`: the page of a run while it trains."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from upslope.cli.report import held_out


def watch(
    run: Annotated[Path, typer.Argument(help="A run folder; it may not be there yet.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
) -> None:
    """Serve the run's page to this machine's user, updated while it trains, with a button that saves and stops."""
    from upslope.report.run import Run
    from upslope.report.server import LiveServer

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored where a shell started us in the background
        signal.signal(number, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True)
    server = LiveServer(Run(run), port=port, held_out=held_out)
    try:
        with server:
            console.print(f"{run} is shown at {server.address}", markup=False)
            console.print("Ctrl-C ends the page; training goes on.", markup=False)
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        console.print("the page is closed", markup=False)
