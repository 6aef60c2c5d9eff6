"""`upslope doctor [RECIPE]`: what is wrong, before a run begins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from upslope.doctor.findings import Finding

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("error", "bold red")}


def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe in TOML; the machine alone where left out.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; may be repeated.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Prompts of the dry step; 32 rows by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of words.")] = False,
) -> None:
    """Look a machine and a recipe over: memory, batch arithmetic, engine against trainer, a dry step.

    No weight and no run folder is changed. The exit status is 1 when something is an error, for use in CI.
    """
    from upslope.doctor.examine import examine
    from upslope.doctor.findings import Findings
    from upslope.doctor.machine import examine_machine
    from upslope.recipe import parse_override

    overrides = dict(parse_override(text) for text in settings or [])
    console = Console(highlight=False, soft_wrap=True)
    findings = Findings() if as_json else Findings(lambda finding: _show(console, finding))
    examine_machine(findings)
    if recipe is not None:
        examine(findings, recipe, overrides, prompts=prompts)
    if as_json:
        found = [dataclasses.asdict(finding) for finding in findings]
        typer.echo(json.dumps({"healthy": findings.healthy, "findings": found}, default=str))
    if not findings.healthy:
        raise typer.Exit(1)


def _show(console: Console, finding: Finding) -> None:
    mark, style = _MARKS[finding.level]
    console.print(f"{mark:8}", style=style, end="")
    console.print(f"{finding.check:10} {finding.text}", markup=False)
    if finding.mend:
        console.print(f"{'':8}{'':10} -> {finding.mend}", markup=False)
