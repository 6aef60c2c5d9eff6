"""Runs a page as its reader would: writes the files it shows, types its commands, and compares what they print."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?[^\n]*\n(.*?)^```', re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d.,:]*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; title is the file's name where it is one."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip():
            found[-1][1].append(line.rstrip())
    return found


def unlike(expected: list[str], printed: str) -> str | None:
    """The first line of a page that was not printed, in order. Any number stands for any other, `...` for any lines."""
    lines = [_shape(line) for line in printed.splitlines()]
    for line in expected:
        if line.strip() == "...":
            continue
        if _shape(line) not in lines:
            return line
        lines = lines[lines.index(_shape(line)) + 1 :]
    return None


def _shape(line: str) -> str:
    return re.sub(r"\s+", " ", _NUMBER.sub("0", line)).strip()


def run_page(page: Path, capsys, monkeypatch) -> list[str]:
    """Every block in order, in the current directory, in this process; returns the commands that ran."""
    ran = []
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            for command, expected in commands(block):
                status, printed = run_command(command, capsys, monkeypatch)
                refused = any(line.startswith("error:") for line in expected)
                assert status == (2 if refused else 0), f"{command}\n{printed}"
                missing = unlike(expected, printed)
                assert missing is None, f"{command}\nsays nothing like {missing!r}:\n{printed}"
                ran.append(command)
    return ran


def run_command(command: str, capsys, monkeypatch) -> tuple[int, str]:
    """Exit status and everything printed of `upslope ...`, `python FILE` or `export NAME=VALUE`."""
    from upslope.cli.main import run as upslope

    program, *arguments = shlex.split(os.path.expandvars(command), comments=True)
    if program == "export":
        for setting in arguments:
            monkeypatch.setenv(*setting.split("=", 1))
        return 0, ""
    monkeypatch.setattr(sys, "argv", [program, *arguments] if program == "upslope" else arguments)
    capsys.readouterr()
    status = 0
    try:
        if program == "upslope":
            upslope()
        else:
            assert program == "python", f"the page types {program!r}, which its test does not know"
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err
