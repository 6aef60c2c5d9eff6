"""Where a fault strikes: something done right before one call of a function of upslope's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def before(owner: Any, name: str, act: Callable[[], object], *, when: Callable[..., bool]) -> None:
    """Patch owner.name for the rest of this process: before each call whose arguments satisfy `when`, act."""
    original = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            act()
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def nth(call: int) -> Callable[..., bool]:
    """True at the call-th time it is asked."""
    asked = [0]

    def when(*_: Any, **__: Any) -> bool:
        asked[0] += 1
        return asked[0] == call

    return when
