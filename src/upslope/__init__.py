"""upslope: reinforcement learning for language models, from a laptop to a cluster.

    run = upslope.train(model="smollm2-135m-instruct", task=task, algorithm="ppo")

Names are imported on first use, so that `import upslope` is quick and reward workers start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.errors import UpslopeError as UpslopeError
    from upslope.evaluation.compare import compare as compare
    from upslope.evaluation.evaluate import evaluate as evaluate
    from upslope.recipe import Recipe as Recipe
    from upslope.records import Batch as Batch
    from upslope.records import Prompt as Prompt
    from upslope.records import Rollout as Rollout
    from upslope.records import Scores as Scores
    from upslope.records import collate as collate
    from upslope.records import pack as pack
    from upslope.records import unpack as unpack
    from upslope.report.run import Run as Run
    from upslope.rewards.terms import RewardTerm as RewardTerm
    from upslope.tasks.task import Task as Task
    from upslope.training.launch import resume as resume
    from upslope.training.launch import train as train
    from upslope.tuning.tune import tune as tune

__version__ = "0.1.0"

_HOMES = {
    "errors": ("UpslopeError",),
    "evaluation.compare": ("compare",),
    "evaluation.evaluate": ("evaluate",),
    "recipe": ("Recipe",),
    "records": ("Batch", "Prompt", "Rollout", "Scores", "collate", "pack", "unpack"),
    "report.run": ("Run",),
    "rewards.terms": ("RewardTerm",),
    "tasks.task": ("Task",),
    "training.launch": ("resume", "train"),
    "tuning.tune": ("tune",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - kept in one table with the homes


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
