"""`upslope rate RUN`: a page on which a person rates the run's samples, by keyboard."""

from __future__ import annotations

import getpass
import signal
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def rate(
    run: Annotated[Path, typer.Argument(help="A run folder with logged samples; it may still be training.")],
    stars: Annotated[
        bool, typer.Option("--stars", help="Give each answer 1 to 5 stars, instead of comparing two.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file of ratings; RUN/ratings.jsonl by default.")
    ] = None,
    rater: Annotated[str | None, typer.Option(help="Who rates; the login name by default.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the questions and which answer is left.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8766,
) -> None:
    """Serve a page to this machine's user that asks which of two samples is better; upslope learns from the answers."""
    from upslope.report.rating_server import RatingServer
    from upslope.report.ratings import Ratings
    from upslope.report.run import Run

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored where a shell started us in the background
        signal.signal(number, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True)
    opened = Run.open(run)
    ratings = Ratings(output or opened.folder / "ratings.jsonl")
    server = RatingServer(opened, ratings, stars=stars, rater=rater or _login(), seed=seed, port=port)
    try:
        with server:
            console.print(f"{run} is rated at {server.address}", markup=False)
            console.print("Ctrl-C ends the page; the next start goes on from there.", markup=False)
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        counts = Counter(str(rating["verdict"]) for rating in server.own_ratings())
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "none"
        console.print(f"ratings in {ratings.path}: {told}", markup=False)


def _login() -> str:
    from upslope.errors import RecordError

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise RecordError("this login has no name; say who rates by --rater") from None
