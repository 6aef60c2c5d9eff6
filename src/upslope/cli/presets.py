"""`upslope presets`: the methods and the settings each one is."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

_COLUMNS = ("baseline", "credit", "surrogate", "scale", "over", "kl", "group_size", "epochs")
_TABLE_WIDTH = 120


def presets(
    name: Annotated[str | None, typer.Argument(help="Show every setting of this preset.")] = None,
) -> None:
    """List the policy-gradient presets, or every setting of one."""
    from upslope.presets import PRESETS
    from upslope.recipe import Recipe

    console = Console()
    shown = [name] if name else list(PRESETS)
    resolved = {each: Recipe.resolve({"algorithm": {"preset": each}}).algorithm for each in shown}
    if name:
        for setting, value in resolved[name].model_dump().items():
            console.print(f"algorithm.{setting} = {'none' if value is None else value}", highlight=False)
        return
    table = Table(*("preset", *_COLUMNS), box=None, pad_edge=False)
    for each, settings in resolved.items():
        table.add_row(each, *(str(getattr(settings, column)) for column in _COLUMNS))
    console.width = max(console.width, _TABLE_WIDTH)  # a name cut short is no name
    console.print(table)
