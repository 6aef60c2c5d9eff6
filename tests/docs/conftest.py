"""A folder of its own for each page, and no module of it left behind."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """An empty current directory, on the import path; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
