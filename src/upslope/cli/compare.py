"""`upslope compare A B --task NAME`: is B better than A, by how much, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console


def compare(
    a: Annotated[str, typer.Argument(help="The model to compare with: a run folder, a model folder, a name.")],
    b: Annotated[str, typer.Argument(help="The model that is judged.")],
    task: Annotated[str | None, typer.Option(help="A task's name; by default the one of the runs.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; may be repeated.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The task's own, reward, or a reward term's name.")] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="How many held-out prompts; all by default.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt; needs a temperature.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily.")] = 0.0,
    kind: Annotated[
        str, typer.Option(help="Of models that are no runs: causal, seq2seq, classifier, tagger.")
    ] = "causal",
    cluster: Annotated[str | None, typer.Option(help="A column that says which prompts hang together.")] = None,
    margin: Annotated[float | None, typer.Option(help="A difference smaller than this is a tie.")] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
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
    detect: Annotated[
        float | None, typer.Option(help="Say how many prompts it takes to find such a difference.")
    ] = None,
    power: Annotated[float, typer.Option(min=0.5, max=0.999, help="How often --detect is to find it.")] = 0.8,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of words.")] = False,
    save: Annotated[Path | None, typer.Option(help="Where to write it: .md for Markdown, else JSON.")] = None,
) -> None:
    """Compare two models on a task's held-out prompts: better, worse, tied or undecided, with an interval."""
    from upslope.errors import RecipeError
    from upslope.evaluation.compare import compare as find
    from upslope.recipe import parse_override
    from upslope.report.run import write_text

    if method not in (None, "t", "asymptotic", "betting"):
        raise RecipeError(f"there is no method {method!r}; it is t, asymptotic or betting")
    found = find(
        a,
        b,
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
        method=cast(Literal["t", "asymptotic", "betting"] | None, method),
        bounds=bounds,
        control=control,
        seed=seed,
    )
    document = json.dumps(found.as_dict())
    if save is not None:
        write_text(save, found.markdown() if save.suffix == ".md" else document + "\n")
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(document, markup=False)
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
