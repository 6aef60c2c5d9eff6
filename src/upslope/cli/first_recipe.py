"""The recipe that `upslope init` writes: what its answers mean, and the text."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from upslope.errors import DataError, RecipeError
from upslope.policies.loading import check_name
from upslope.presets import PRESETS
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.rewards.numbers import last_number
from upslope.tasks import Task, load_task, load_terms
from upslope.tasks import task_of as task_of_recipe
from upslope.tasks.loading import RULES, TASKS
from upslope.tasks.readers import SUFFIXES, read_prompts

MODEL = "smollm2-135m-instruct"
OWN = "task"
"""The reward that the task brings itself."""

_GROUP = 8


@dataclass(frozen=True, slots=True)
class Chosen:
    """A task as the recipe names it, and the columns of a data file's first record."""

    name: str
    options: Mapping[str, Any]
    columns: Mapping[str, Any]
    held_out: int
    has_reward: bool


def model_of(text: str) -> str:
    """The model's name. Raises: ModelError where there can be no such model, with the nearest that is."""
    check_name(text)
    return text


def task_of(text: str) -> Chosen:
    """The task that an answer means, loaded once to see that it is there.

    Raises: RecipeError and DataError with the nearest name or file that exists.
    """
    if text.startswith("reasoning-gym:"):
        return _loaded("reasoning-gym", {"dataset": text.partition(":")[2]})
    if ":" in text or (text in TASKS and text not in ("file", "reasoning-gym")):
        return _loaded(text, {})
    path = Path(text)
    if path.exists() or path.suffix.lower() in SUFFIXES:
        return _file(path)
    known = [*(name for name in TASKS if name not in ("file", "reasoning-gym")), *_data_files(Path())]
    raise RecipeError(
        f"there is no task and no data file {text!r}; {_nearest(text, known)}; reasoning-gym's datasets are written "
        "reasoning-gym:NAME, and your own task package.module:name"
    )


def default_reward(task: Chosen) -> str | None:
    """What an empty answer takes: the task's own reward, or a comparison with the data's answer; None without one."""
    if task.has_reward:
        return OWN
    column = _answer_column(task)
    if column is None:
        return None
    return "contains" if last_number(str(task.columns[column])) is None else "numeric_answer"


def reward_of(text: str, task: Chosen) -> dict[str, Any] | None:
    """The reward as a recipe's table, None for the task's own. Raises: RecipeError with the nearest name there is."""
    if text == OWN and task.has_reward:
        return None
    table: dict[str, Any] = {"function": text}
    column = _answer_column(task)
    if text in RULES and column not in (None, "answer") and text in ("contains", "exact_match", "numeric_answer"):
        table["column"] = column
    load_terms([table])
    return table


def preset_of(text: str) -> str:
    """The preset's name. Raises: RecipeError with the nearest."""
    return Recipe.resolve({"algorithm": {"preset": text, "group_size": _GROUP}}).algorithm.preset


def minutes_of(text: str) -> float:
    """Minutes, above 0. Raises: RecipeError."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise RecipeError(f"the time is {text!r}, but must be minutes above 0, such as 5 or 0.5")
    return minutes


def recipe_text(
    model: str, task: Chosen, reward: Mapping[str, Any] | None, preset: str, minutes: float, *, file: Path
) -> str:
    """The commented recipe, resolved once and its task built once to see that they stand.

    Raises: RecipeError, DataError and RewardError as a run of it would.
    """
    parts = (
        f"# upslope train {file}      (`upslope doctor {file}` looks it over first)\n"
        "# Every setting has a default; docs/recipes.md has all of them. `--set lr=1e-5` overrides one for a run.",
        _model_section(model),
        _task_section(task),
        _reward_section(reward),
        _algorithm_section(preset, task),
        _rest(task, minutes),
    )
    text = "\n\n".join(part for part in parts if part) + "\n"
    task_of_recipe(Recipe.resolve(tomllib.loads(text)))
    return text


def _loaded(name: str, options: Mapping[str, Any]) -> Chosen:
    task: Task = load_task(name, options)
    first: Prompt = task.prompts[0]
    return Chosen(name, options, first.columns, len(task.eval_prompts), bool(task.terms))


def _file(path: Path) -> Chosen:
    if not path.exists():
        folder = path.parent
        near = _nearest(path.name, _data_files(folder))
        raise DataError(f"there is no file {str(path)!r}; {near}")
    (first, *_), _ = read_prompts(path, limit=1)
    options = {"path": str(path), **({"chat": True} if isinstance(first.content, str) else {})}
    return Chosen("file", options, first.columns, 0, has_reward=False)


def _data_files(folder: Path) -> list[str]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if path.suffix.lower() in SUFFIXES)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"


def _answer_column(task: Chosen) -> str | None:
    """What completions are compared with: `answer`, else the first column of text or a number."""
    plain = [name for name, value in task.columns.items() if isinstance(value, (str, int, float))]
    return "answer" if "answer" in plain else next(iter(plain), None)


def _model_section(model: str) -> str:
    return (
        "[model]\n"
        "# A Transformers folder, a hub id (org/name) or an embedded name. tiny-llama is random, for dry runs.\n"
        f"name = {_toml(model)}\n"
        "# A large model: train adapters only, which needs a fraction of the memory (pip install 'upslope[lora]').\n"
        "# [model.lora]\n"
        "# r = 16"
    )


def _task_section(task: Chosen) -> str:
    comments = {
        "arithmetic": "# Sums of two numbers of so many digits; the metric is the share of right answers.",
        "reasoning-gym": "# Problems made by reasoning-gym, scored by its own function. More options go to it.",
        "file": "# One prompt a line; its other columns are handed to the reward by name. chat puts a prompt into the\n"
        '# model\'s chat template. Held-out prompts: eval = "FILE".',
    }
    options = {"digits": 2, "operation": "+"} if task.name == "arithmetic" else task.options
    lines = [comments.get(task.name, "# Your own: a Task, or a function that returns one and gets the options below.")]
    lines += [f"{name} = {_toml(value)}" for name, value in options.items()]
    return f"[task]\nname = {_toml(task.name)}\n\n[task.options]\n" + "\n".join(lines)


def _reward_section(reward: Mapping[str, Any] | None) -> str:
    if reward is None:
        return ""
    table = ", ".join(f"{name} = {_toml(value)}" for name, value in reward.items())
    return (
        "[reward]\n"
        "# One or more functions; a row's reward is their weighted sum. Your own is package.module:name, a function\n"
        "# f(completion, <columns>) -> float. A sample whose reward fails is dropped and counted, never scored 0.\n"
        f"functions = [{{ {table}, weight = 1.0 }}]"
    )


def _algorithm_section(preset: str, task: Chosen) -> str:
    lines = [
        "[algorithm]",
        "# A preset fills this section; `upslope presets` compares them, and every setting can be changed by itself.",
        f"preset = {_toml(preset)}",
        "# Samples of each prompt: they are compared with each other, so some prompts must be solved sometimes.",
        f"group_size = {_GROUP}",
    ]
    if PRESETS[preset].get("epochs", 1) > 1:
        lines += [
            "# Passes over each step's samples. More learn faster from few samples, and stray further.",
            "epochs = 1",
        ]
    if PRESETS[preset].get("kl", "off") != "off":
        off = 'kl = "off"'
        if task.name == "arithmetic":
            lines += ["# A right sum cannot be gamed, so no KL has to hold the model near where it began.", off]
        else:
            lines += ["# The KL holds the model near where it began. Off: a copy of the weights less.", f"# {off}"]
    return "\n".join(lines)


def _rest(task: Chosen, minutes: float) -> str:
    new = 8 if task.name == "arithmetic" else 64
    held_out = (
        "[evaluation]\n"
        "# Held-out prompts, decoded greedily, every so many steps.\n"
        "every_steps = 20\n"
        f"num_prompts = {min(64, task.held_out)}\n\n"
    )
    return (
        "[sampling]\n"
        "# The longest answer in tokens. Cut answers teach little: the doctor says how many are cut.\n"
        f"max_new_tokens = {new}\n\n"
        "[optimizer]\n"
        "# Too high: the KL runs away and the reward falls. Too low: nothing happens. 1e-6 to 5e-5; adapters 1e-4.\n"
        "lr = 2e-5\n\n"
        "[training]\n"
        "# Rows of a step: prompts_per_step x group_size. Training ends at whichever limit comes first.\n"
        "prompts_per_step = 8\n"
        "steps = 1000\n"
        f"max_train_s = {minutes * 60:g}\n\n"
        f"{held_out if task.held_out else ''}"
        "[run]\n"
        "# Where metrics, samples, checkpoints and the final model go: a dated folder under runs/ where left out.\n"
        '# folder = "runs/first"\n'
        'trackers = ["tensorboard"]'
    )


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    return tomli_w.dumps({"value": value}).partition(" = ")[2].strip()
