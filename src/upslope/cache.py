"""Where upslope keeps what can be fetched or built again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where fetched models and compiled kernels lie: $UPSLOPE_CACHE, else $XDG_CACHE_HOME/upslope, else
    ~/.cache/upslope."""
    if configured := os.environ.get("UPSLOPE_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upslope"
