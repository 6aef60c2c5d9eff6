"""What is tuned and how, in one folder that any worker can read: the plan, its prompts, and where things lie."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from upslope.errors import CheckpointError, DataError, RecipeError
from upslope.evaluation.arms import clusters_of, shuffled
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.report.run import write_text
from upslope.tasks import Task
from upslope.training.methods import measured_by
from upslope.tuning.space import Space, written


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe, the space around it, and how to search it.

    trials: how many in all. seeds: runs of each setting. error: the chance that the best setting is pruned. bounds of
    the metric, by which pruning bets; None: nothing is pruned. held_back: share of the held-out prompts that tuning
    does not see. keep_models: of every trial, not of the best alone.

    Layout of the folder: plan/ (recipe.toml, space.toml, tuning.toml), study.db, trials/NNNN/seed-S (run folders); then
    best.toml, result.json, report.md, report.html.
    """

    folder: Path
    recipe: Recipe
    space: Space
    trials: int = 20
    seeds: int = 1
    sampler: str = "tree"
    error: float = 0.05
    bounds: tuple[float, float] | None = (0.0, 1.0)
    held_back: float = 1.0 / 3.0
    seed: int = 0
    keep_models: bool = False

    @property
    def study_path(self) -> Path:
        """The trials' storage."""
        return self.folder / "study.db"

    @property
    def best_path(self) -> Path:
        """The recipe with the settings that were found."""
        return self.folder / "best.toml"

    def worker_log(self, number: int) -> Path:
        """Where one of several workers says what went wrong."""
        return self.folder / "plan" / f"worker-{number}.log"

    def trial_path(self, number: int) -> Path:
        """The folder of a trial's runs."""
        return self.folder / "trials" / f"{number:04d}"

    def run_path(self, number: int, seed: int) -> Path:
        """The run folder of a trial's seed, counted from 0."""
        return self.trial_path(number) / f"seed-{seed}"

    def check(self, task: Task) -> None:
        """Raises: RecipeError for settings out of range, a space that the recipe refuses, or a method that has no
        metric of samples; DataError for too few held-out prompts."""
        for name, at_least in (("trials", 1), ("seeds", 1)):
            if getattr(self, name) < at_least:
                raise RecipeError(f"{name} is {getattr(self, name)}, but must be {at_least} at least")
        for name in ("error", "held_back"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise RecipeError(f"{name} is {getattr(self, name)}, but must be a share between 0 and 1")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise RecipeError(f"the bounds of the metric are crossed: {self.bounds[0]:g} to {self.bounds[1]:g}")
        if measured_by(self.recipe, task) is not None:
            raise RecipeError(
                f"method {self.recipe.method!r} has no metric of what the model writes, so it is not tuned"
            )
        if task.metric_name == "reward" and any(p.name.startswith("reward.functions") for p in self.space.parameters):
            raise RecipeError("reward.functions is tuned, but the task's metric is the reward: give the task a metric")
        self.space.check(self.recipe)
        self.prompts(task)

    def prompts(self, task: Task) -> tuple[list[list[Prompt]], list[list[Prompt]]]:
        """The held-out prompts to tune on and those held back, in clusters (repeats of one text), in a random order.

        Raises: DataError where either would have fewer than two.
        """
        given: Sequence[Prompt] = task.eval_prompts[: self.recipe.evaluation.num_prompts]
        groups = shuffled(given, clusters_of(given, None), seed=self.seed)
        kept = round(self.held_back * len(groups))
        if min(kept, len(groups) - kept) < 2:
            raise DataError(
                f"task {task.name!r} has {len(groups)} different held-out prompts, of which {kept} would be held back: "
                "tuning needs two at least on either side"
            )
        return groups[kept:], groups[:kept]

    def settings(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these values. Raises: RecipeError where it refuses them."""
        return Recipe.resolve(self.recipe.model_dump(), values)

    def trial_recipe(self, values: Mapping[str, Any], number: int, seed: int) -> Recipe:
        """The recipe of a trial's run: evaluated at its end at least, on all prompts that tuning may see."""
        recipe = self.settings(values)
        own: dict[str, Any] = {
            "training.seed": recipe.training.seed + seed,
            "run.folder": str(self.run_path(number, seed)),
            "evaluation.num_prompts": None,
            "evaluation.every_steps": recipe.evaluation.every_steps or recipe.training.steps,
        }
        return Recipe.resolve(recipe.model_dump(), own)

    def identity(self) -> dict[str, Any]:
        """What a study's trials have in common: with anything else they could not be compared."""
        bounds = "none" if self.bounds is None else list(self.bounds)
        shared = {"seeds": self.seeds, "error": self.error, "bounds": bounds}
        return {
            "recipe": tomllib.loads(self.recipe.to_toml()),
            "space": tomllib.loads(self.space.to_toml()),
            "tuning": shared | {"held_back": self.held_back, "seed": self.seed},
        }

    def make_folder(self) -> None:
        """Raises: CheckpointError where it cannot be made."""
        try:
            for name in ("plan", "trials"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the tuning folder {self.folder}: {error.strerror}") from error

    def save(self) -> None:
        """Write the plan into its folder. Raises: CheckpointError where that cannot be written."""
        changing = {"trials": self.trials, "sampler": self.sampler, "keep_models": self.keep_models}
        write_text(self.folder / "plan/recipe.toml", self.recipe.to_toml())
        write_text(self.folder / "plan/space.toml", self.space.to_toml())
        write_text(self.folder / "plan/tuning.toml", tomli_w.dumps(self.identity()["tuning"] | changing))

    @staticmethod
    def load(folder: Path) -> Plan:
        """The plan that a folder holds."""
        settings = tomllib.loads((folder / "plan/tuning.toml").read_text(encoding="utf-8"))
        settings["bounds"] = None if settings["bounds"] == "none" else tuple(settings["bounds"])
        recipe, space = Recipe.load(folder / "plan/recipe.toml"), Space.read(folder / "plan/space.toml")
        return Plan(folder, recipe, space, **settings)


def difference_of(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first thing in which two identities differ, in words; "" where they agree."""
    for name in ("recipe", "space", "tuning"):
        before, after = (dict(_leaves(each[name])) for each in (kept, asked))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                was, now = (written({key: each[key]}) if key in each else f"no {key}" for each in (before, after))
                return f"its {name} has {was}, and this one {now}"
    return ""


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def only(task: Task, groups: Sequence[Sequence[Prompt]]) -> Task:
    """The task with these held-out prompts."""
    return dataclasses.replace(task, eval_prompts=[prompt for group in groups for prompt in group])
