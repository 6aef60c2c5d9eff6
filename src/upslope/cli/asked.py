"""The options that say what models are asked and how: those of `evaluate`, `compare` and `select`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

if TYPE_CHECKING:
    from upslope.evaluation.ensembles import Candidate

TaskName = Annotated[str | None, typer.Option(help="A task's name; by default the one of the runs.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; may be repeated.")
]
Metric = Annotated[str | None, typer.Option(help="The task's own, reward, or a reward term's name.")]
NumPrompts = Annotated[int | None, typer.Option(min=1, help="How many held-out prompts; all by default.")]
Samples = Annotated[int, typer.Option(min=1, help="Answers to each prompt; needs a temperature.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1)]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 decodes greedily.")]
Kind = Annotated[str, typer.Option(help="Of models that are no runs: causal, seq2seq, classifier, tagger.")]
Cluster = Annotated[str | None, typer.Option(help="A column that says which prompts hang together.")]
Margin = Annotated[float | None, typer.Option(help="A difference smaller than this is a tie.")]
Confidence = Annotated[float, typer.Option(min=0.5, max=0.999)]
Ensembles = Annotated[str, typer.Option(help="How an ensemble A+B+C answers: vote, or average (of classifiers).")]
Seed = Annotated[int, typer.Option()]
Detect = Annotated[float | None, typer.Option(help="Say how many prompts it takes to find such a difference.")]
Power = Annotated[float, typer.Option(min=0.5, max=0.999, help="How often --detect is to find it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON instead of words.")]
Save = Annotated[Path | None, typer.Option(help="Where to write it: .html a page, .md Markdown, else JSON.")]


def candidates(models: list[str], ensembles: str) -> list[Candidate]:
    """The models that were named, A+B+C as an ensemble that answers so. Raises: RecipeError for another way."""
    from upslope.evaluation.ensembles import candidate

    by = cast(Literal["vote", "average"], chosen("way to answer together", ensembles, ("vote", "average")))
    return [candidate(model, by=by) for model in models]


def chosen(name: str, value: str, choices: tuple[str, ...]) -> str:
    """The value, if it is one of the choices. Raises: RecipeError."""
    from upslope.errors import RecipeError

    if value not in choices:
        raise RecipeError(f"there is no {name} {value!r}; it is {', '.join(choices[:-1])} or {choices[-1]}")
    return value
