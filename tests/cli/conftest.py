"""Commands as a user types them."""

import sys

import pytest

from upslope.cli.main import run as command_line


@pytest.fixture
def upslope(capsys, monkeypatch):
    """Runs a command in this process by the entry point: (exit status, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["upslope", *map(str, arguments)])
        status = 0
        capsys.readouterr()
        try:
            command_line()
        except SystemExit as exit_:
            status = exit_.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
