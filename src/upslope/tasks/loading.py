"""Tasks and reward functions by name: built in, or the user's own as `package.module:name`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import RecipeError
from upslope.recipe import Recipe
from upslope.rewards import numbers, overlap, rules, spans
from upslope.rewards.demonstrated import implicit, inverse_q
from upslope.rewards.judge import llm_judge
from upslope.rewards.language_model import likelihood
from upslope.rewards.learned import reward_model
from upslope.rewards.mathematics import math_answer
from upslope.rewards.programs import passes_tests
from upslope.rewards.terms import RewardTerm, parameters
from upslope.tasks.arithmetic import arithmetic
from upslope.tasks.files import from_file
from upslope.tasks.labelled import labelled
from upslope.tasks.preferences import preferences
from upslope.tasks.ratings import ratings
from upslope.tasks.reasoning_gym import reasoning_gym
from upslope.tasks.task import Task

IN_MEMORY = "in-memory"
"""What a recipe names as its task when the task was given as a Python object."""

MODEL = "model:"
"""What a reward's name begins with where it is a reward model's run or folder."""

Spec = str | Mapping[str, Any] | Callable[..., Any] | RewardTerm

TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": arithmetic,
    "file": from_file,
    "labelled": labelled,
    "preferences": preferences,
    "ratings": ratings,
    "reasoning-gym": reasoning_gym,
}

RULES: dict[str, Callable[..., Any]] = {
    "bleu": overlap.bleu,
    "chrf": overlap.chrf,
    "contains": rules.contains,
    "cost_matrix": rules.cost_matrix,
    "ends_with": rules.ends_with,
    "exact_match": rules.exact_match,
    "implicit": implicit,
    "inverse_q": inverse_q,
    "json_parsable": rules.json_parsable,
    "json_schema": rules.json_schema,
    "length_penalty": rules.length_penalty,
    "likelihood": likelihood,
    "llm_judge": llm_judge,
    "math_answer": math_answer,
    "numeric_answer": rules.numeric_answer,
    "one_minus_ter": overlap.one_minus_ter,
    "overlong_penalty": rules.overlong_penalty,
    "passes_tests": passes_tests,
    "regex_match": rules.regex_match,
    "repetition_penalty": rules.repetition_penalty,
    "reward_model": reward_model,
    "rouge_1": overlap.rouge_1,
    "rouge_2": overlap.rouge_2,
    "rouge_l": overlap.rouge_l,
    "span_credit": spans.span_credit,
    "span_f1": spans.span_f1,
    "starts_with": rules.starts_with,
    "tag_accuracy": spans.tag_accuracy,
}
"""Factories of reward functions, called with the options of the recipe."""

FUNCTIONS: dict[str, Callable[..., float]] = {
    "brevity": numbers.brevity,
    "closeness": numbers.closeness,
    "correct": numbers.correct,
    "digits_right": numbers.digits_right,
    "ended": numbers.ended,
}


def load_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task of a recipe: one of TASKS, or the user's `package.module:name`.

    A name of the user's own stands for a Task, or for a callable that returns one and gets the options. In the
    options of tasks read from files, reward and metric may be names as in `load_terms`.

    Raises: RecipeError when the name or an option does not exist (with the nearest that does).
    """
    options = dict(options or {})
    if ":" not in name:
        if name not in TASKS:
            raise RecipeError(f"there is no task {name!r} ({_nearest(name, TASKS)}); your own is package.module:name")
        made: Any = TASKS[name]
    else:
        made = load_function(name, allow=Task)
    if isinstance(made, Task):
        if options:
            raise RecipeError(f"task {name!r} is ready made and takes no options, but got {', '.join(options)}")
        return made
    if made in (from_file, labelled, preferences, ratings):
        options = _reward_options(options)
    _check_options(name, made, options)
    task = made(**options)
    if not isinstance(task, Task):
        raise RecipeError(f"task {name!r} gave a {type(task).__name__}; it must return an upslope.tasks.Task")
    return task


def task_of(recipe: Recipe, task: Task | None = None) -> Task:
    """The task a recipe names (or the given one), with the recipe's reward functions where it has any.

    Raises: RecipeError when the recipe's task was a Python object and none is given.
    """
    if task is None:
        if recipe.task.name == IN_MEMORY:
            raise RecipeError("this run's task was a Python object; give it again from Python, as task=...")
        task = load_task(recipe.task.name, recipe.task.options)
    if not recipe.reward.functions:
        return task
    metrics = [term for term in task.terms if term.name == task.metric_name]
    return dataclasses.replace(task, reward=load_terms(recipe.reward.functions), metric=metrics[0] if metrics else None)


def load_terms(specs: Spec | Sequence[Spec]) -> tuple[RewardTerm, ...]:
    """Reward terms from names: `correct`, `numeric_answer`, `package.module:name`; or tables with more settings.

    `model:RUN` is the reward model of a run, or of a model's folder: `reward_model` with that model.

    A table has `function` and may have `weight` and `name`; its other keys are options of a built-in rule, as in
    `{function = "numeric_answer", column = "final", weight = 0.5}`. Callables and terms pass through.

    Raises: RecipeError when a name or option does not exist.
    """
    many = specs if isinstance(specs, Sequence) and not isinstance(specs, str) else [specs]
    return tuple(_load_term(spec) for spec in many)


def load_function(name: str, *, allow: type | None = None) -> Any:
    """The callable that `package.module:name` names, with the current directory on the import path.

    allow is a further type the named object may have.

    Raises: RecipeError saying whether the module or the name is missing, with the nearest name that exists.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise RecipeError(f"{name!r} names no object; write package.module:name")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(module_name, name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise RecipeError(f"{name!r}: {module_name} has no {part!r}; {_nearest(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found) and not (allow and isinstance(found, allow)):
        raise RecipeError(f"{name!r} is a {type(found).__name__}, which cannot be called")
    return found


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise RecipeError(f"{name!r}: there is no module {error.name!r} in {Path.cwd()} or installed") from error
        raise RecipeError(f"{name!r}: its module needs {error.name!r}, which is not installed") from error
    except Exception as error:
        raise RecipeError(f"{name!r}: importing {module} raised {type(error).__name__}: {error}") from error


def _load_term(spec: Spec) -> RewardTerm:
    if isinstance(spec, RewardTerm):
        return spec
    if callable(spec):
        return RewardTerm(spec)
    table: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"function": spec}
    name = table.pop("function", None)
    if not isinstance(name, str):
        raise RecipeError(f"reward {spec!r} needs a function: a name such as 'correct' or package.module:name")
    weight, label = table.pop("weight", 1.0), table.pop("name", "")
    return RewardTerm(_named_function(name, table), weight, label)


def _named_function(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    if name.startswith(MODEL):
        name, options = "reward_model", {"model": name.removeprefix(MODEL), **options}
    if name in RULES:
        _check_options(name, RULES[name], options)
        return RULES[name](**options)  # type: ignore[no-any-return]
    if options:
        raise RecipeError(f"reward {name!r} takes no options, but got {', '.join(options)}")
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if ":" in name:
        return load_function(name)  # type: ignore[no-any-return]
    near = _nearest(name, [*RULES, *FUNCTIONS])
    raise RecipeError(f"there is no built-in reward {name!r} ({near}); your own is package.module:name")


def _reward_options(options: dict[str, Any]) -> dict[str, Any]:
    if "reward" in options:
        options["reward"] = load_terms(options["reward"])
    if options.get("metric") is not None:
        options["metric"] = load_terms(options["metric"])[0]
    return options


def _check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known, takes_all = parameters(function)
    for option in options:
        if option not in known and not takes_all:
            raise RecipeError(f"{name!r} has no option {option!r}; {_nearest(option, known)}")
    for option, required in known.items():
        if required and option not in options:
            raise RecipeError(f"{name!r} needs the option {option!r}")


def _nearest(name: str, known: Iterable[str]) -> str:
    public = [each for each in known if not each.startswith("_")]
    near = difflib.get_close_matches(name, public, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(public) or 'none'}"
