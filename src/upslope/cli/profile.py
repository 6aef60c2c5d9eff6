"""`--profile`: where the time of a run's steps went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from upslope.report.run import Run

ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Show where the time went, and keep it as profile.json and profile.md.")
]


def show_profile(run: Run, console: Console) -> None:
    """Print the run's profile and write it into the run folder."""
    from upslope.report.profile import Profile

    profile = Profile.of(run)
    profile.write(run)
    console.print(profile.markdown(), highlight=False, markup=False, soft_wrap=True, end="")
