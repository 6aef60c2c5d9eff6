"""`upslope init [FILE]`: five questions, and a commented recipe that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

Answer = TypeVar("Answer")

_QUESTIONS = {
    "model": "Model (a folder, a hub id, an embedded name)",
    "task": "Task (arithmetic, reasoning-gym:NAME, a data file, package.module:name)",
    "reward": "Reward (a built-in one, or package.module:name)",
    "algorithm": "Algorithm (a preset)",
    "minutes": "Minutes of training",
}


def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.toml"),
    model: Annotated[str | None, typer.Option(help="A model folder, a hub id or an embedded name.")] = None,
    task: Annotated[
        str | None, typer.Option(help="arithmetic, reasoning-gym:NAME, a data file, or your own package.module:name.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="A built-in reward or package.module:name; 'task' for the task's own.")
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="A preset; `upslope presets` lists them.")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long to train.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: defaults for what is not given.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Ask for model, task, reward, algorithm and time, and write a commented recipe that runs.

    A question whose option is given is not asked; Enter takes the default.
    """
    from upslope.cli import first_recipe as first
    from upslope.errors import RecipeError

    if file.exists() and not force:
        raise RecipeError(f"{str(file)!r} is there already; name another file, or overwrite it with --force")
    ask = _asker(quiet=yes)
    chosen = ask("model", model, first.MODEL, first.model_of)
    work = ask("task", task, "arithmetic", first.task_of)
    paid = ask("reward", reward, first.default_reward(work), lambda text: first.reward_of(text, work))
    preset = ask("algorithm", algorithm, "ppo", first.preset_of)
    limit = ask("minutes", None if minutes is None else str(minutes), "5", first.minutes_of)
    text = first.recipe_text(chosen, work, paid, preset, limit, file=file)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{str(file)!r} cannot be written: {error.strerror}") from error
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"wrote {file}; next:", markup=False)
    for command in ("doctor", "train"):
        console.print(f"  upslope {command} {file}", markup=False)


def _asker(*, quiet: bool) -> Callable[[str, str | None, str | None, Callable[[str], Answer]], Answer]:
    """ask(option, given, default, read): the answer as `read` understands it; a wrong one is asked for again."""
    from upslope.errors import RecipeError, UpslopeError

    def ask(option: str, given: str | None, default: str | None, read: Callable[[str], Answer]) -> Answer:
        if given is not None:
            return read(given)
        if quiet and default is None:
            raise RecipeError(f"there is no default {option} here; give --{option}")
        if quiet and default is not None:
            return read(default)

        def checked(text: str) -> Answer:
            try:
                return read(text)
            except UpslopeError as error:
                raise typer.BadParameter(str(error)) from error

        answer: Answer = typer.prompt(_QUESTIONS[option], default=default, value_proc=checked)
        return answer

    return ask
