"""`upslope compare A B --task NAME`: is B better than A, by how much, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console

from upslope.cli import asked
from upslope.cli.asked import chosen

_OF_MODELS = (
    *("task", "options", "num_prompts", "samples", "max_new_tokens", "temperature", "kind", "ensembles"),
    *("look_every", "control"),
)
"""What a log cannot be told any more."""


def compare(
    context: typer.Context,
    a: Annotated[
        str,
        typer.Argument(
            help="The model to compare with: a run folder, a model folder, a name, A+B, or a log of lm_eval."
        ),
    ],
    b: Annotated[str, typer.Argument(help="The model that is judged.")],
    task: asked.TaskName = None,
    options: asked.TaskOptions = None,
    metric: asked.Metric = None,
    num_prompts: asked.NumPrompts = None,
    samples: asked.Samples = 1,
    max_new_tokens: asked.MaxNewTokens = None,
    temperature: asked.Temperature = 0.0,
    kind: asked.Kind = "causal",
    ensembles: asked.Ensembles = "vote",
    cluster: asked.Cluster = None,
    margin: asked.Margin = None,
    confidence: asked.Confidence = 0.95,
    look_every: Annotated[
        int | None, typer.Option(min=1, help="Look after so many prompts, and stop once sure.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="t, asymptotic or betting; the last two go with looking.")] = None,
    bounds: Annotated[
        tuple[float, float] | None, typer.Option(help="The least and the largest reward there is.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="A model whose log-ratio to A takes luck out; B itself, say.")
    ] = None,
    filter_name: Annotated[
        str | None, typer.Option("--filter", help="Of logs: which of the harness's filters read the answers.")
    ] = None,
    detect: asked.Detect = None,
    power: asked.Power = 0.8,
    seed: asked.Seed = 0,
    as_json: asked.AsJson = False,
    save: asked.Save = None,
) -> None:
    """Compare two models on a task's held-out prompts: better, worse, tied or undecided, with an interval.

    Two files samples_*.jsonl of lm_eval --log_samples are compared as they are.
    """
    from upslope.evaluation.compare import compare as find
    from upslope.evaluation.logs import compare_logs
    from upslope.recipe import parse_override
    from upslope.report import document

    document.check_place(save)
    if method is not None:
        chosen("method", method, ("t", "asymptotic", "betting"))
    how = cast(Literal["t", "asymptotic", "betting"] | None, method)
    if Path(a).is_file() or Path(b).is_file():
        _check_logs(context)
        found = compare_logs(
            a,
            b,
            metric=metric,
            filter_name=filter_name,
            cluster=cluster,
            margin=margin,
            confidence=confidence,
            method=how or "t",
            bounds=bounds,
            seed=seed,
        )
    else:
        first, second = asked.candidates([a, b], ensembles)
        found = find(
            first,
            second,
            task,
            options=dict(parse_override(text) for text in options or []),
            metric=metric,
            num_prompts=num_prompts,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            kind=kind,
            cluster=cluster,
            margin=margin,
            confidence=confidence,
            look_every=look_every,
            method=how,
            bounds=bounds,
            control=control,
            seed=seed,
        )
    if save is not None:
        document.save(save, found.document(), found.as_dict())
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(found.as_dict()), markup=False)
        return
    console.print(str(found), markup=False)
    for name, value in found.rows():
        console.print(f"  {name:<28} {value}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    if detect is not None:
        needed = found.prompts_to_detect(detect, power=power, confidence=confidence)
        console.print(
            f"to find a difference of {detect:g} in {power:.0%} of such comparisons: {needed} prompts", markup=False
        )


def _check_logs(context: typer.Context) -> None:
    """Raises: RecipeError for an option that only models can be told."""
    from upslope.errors import RecipeError

    sources = {name: context.get_parameter_source(name) for name in _OF_MODELS}
    typed = [
        name.replace("_", "-")
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]
    if typed:
        raise RecipeError(f"a log is answered already; leave out {', '.join(f'--{name}' for name in typed)}")
