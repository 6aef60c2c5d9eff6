"""Names of settings: short ones, misspelt ones, and what other libraries call them; and the sentence for a wrong value.

Every function takes the recipe's class, whose fields are the names.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from upslope.errors import RecipeError

ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "max_steps": "training.steps",
    "total_timesteps": "training.steps",
    "per_device_train_batch_size": "training.prompts_per_step",
    "batch_size": "training.prompts_per_step",
    "num_generations": "algorithm.group_size",
    "max_completion_length": "sampling.max_new_tokens",
    "max_length": "sampling.max_new_tokens",
    "beta": "algorithm.kl_coef",
    "kl_coeff": "algorithm.kl_coef",
    "epsilon": "algorithm.clip_low",
    "epsilon_high": "algorithm.clip_high",
    "clip_range": "algorithm.clip_low",
    "gae_lambda": "algorithm.lam",
    "vf_coef": "algorithm.value_coef",
    "ent_coef": "algorithm.entropy_coef",
    "target_kl": "algorithm.kl_stop",
    "n_epochs": "algorithm.epochs",
    "num_ppo_epochs": "algorithm.epochs",
    "loss_type": "algorithm.preset",
    "output_dir": "run.folder",
    "report_to": "run.trackers",
    "warmup_ratio": "optimizer.warmup_steps",
    "lr_scheduler_type": "optimizer.schedule",
}
"""What TRL and Stable-Baselines call a setting -> its name here."""


def setting_names(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Full names of all sections and settings, nested ones such as model.lora.r included."""
    names = []
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        names += [prefix + name, *(setting_names(inner, f"{prefix}{name}.") if inner else [])]
    return names


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold."""
    choices = [each for each in (annotation, *typing.get_args(annotation)) if isinstance(each, type)]
    return next((choice for choice in choices if issubclass(choice, BaseModel)), None)


def full_name(root: type[BaseModel], name: str) -> str:
    """A setting's full name from its full or unique last name.

    Raises: RecipeError when there is none, or more than one.
    """
    names = setting_names(root)
    if name in names or name.split(".", maxsplit=1)[0] in root.model_fields:
        return name
    found = [full for full in names if full.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(f"setting {name!r} could be any of {', '.join(found)}; write it in full")
    raise RecipeError(f"{name!r} is no setting{nearest(name, names)}")


def place(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value at a dotted name of nested settings."""
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[parent]
    values[last] = value


def nearest(name: Any, names: Sequence[str]) -> str:
    """A hint at what was meant: what TRL and Stable-Baselines call it, else the name that is spelt most alike."""
    short = str(name).rsplit(".", maxsplit=1)[-1]
    if short in ELSEWHERE and (ELSEWHERE[short] in names or not names):
        return f"; did you mean {ELSEWHERE[short]!r}?"
    last = {full.rsplit(".", maxsplit=1)[-1]: full for full in names}
    known = {full: full for full in names} if "." in str(name) else last
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


def sentence(root: type[BaseModel], error: ValidationError) -> str:
    """The first thing wrong with a recipe, as one sentence: the setting, what was given, what is allowed."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where!r} is no setting{nearest(where, _siblings(root, first['loc']))}"
    if first["type"] == "value_error":
        return f"{where + '.' if where else ''}{first['msg'].removeprefix('Value error, ')}"
    given = first["input"]
    if first["type"] in ("model_type", "dict_type", "model_attributes_type") and isinstance(given, str):
        return f"{where} is a section of settings, not {given!r}; set {where}.name or another of its settings"
    hint = ""
    if first["type"] == "literal_error" and isinstance(given, str):
        allowed = first["ctx"]["expected"]
        hint = nearest(given, [choice.strip(" '") for choice in allowed.replace(" or ", ", ").split(",")])
    message = first["msg"].replace("Input should", "it should")
    return f"{where} is {given!r}, but {message[0].lower()}{message[1:]}{hint}"


def _siblings(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Full names of the settings that stand beside the given one."""
    section: type[BaseModel] | None = root
    prefix = ""
    for part in location[:-1]:
        field = section.model_fields.get(str(part)) if section else None
        section = _section_of(field.annotation) if field else None
        prefix += f"{part}."
    return [prefix + name for name in section.model_fields] if section else []
