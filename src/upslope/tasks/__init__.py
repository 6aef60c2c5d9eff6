"""Tasks: prompts, a reward and a metric; readers for data files; tasks that come built in.

Names are imported on first use: a reward worker rebuilds functions of this package without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.tasks.files import from_file as from_file
    from upslope.tasks.loading import load_function as load_function
    from upslope.tasks.loading import load_task as load_task
    from upslope.tasks.loading import load_terms as load_terms
    from upslope.tasks.loading import task_of as task_of
    from upslope.tasks.prompts import as_prompts as as_prompts
    from upslope.tasks.readers import read_prompts as read_prompts
    from upslope.tasks.task import Task as Task

_HOME_OF = {
    "from_file": "files",
    "load_function": "loading",
    "load_task": "loading",
    "load_terms": "loading",
    "task_of": "loading",
    "as_prompts": "prompts",
    "read_prompts": "readers",
    "Task": "task",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
