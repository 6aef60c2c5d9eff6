"""`upslope generate MODEL PROMPT`: see what a model writes."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import typer
from rich.console import Console


def generate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a hub id or an embedded name.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; read from standard input when left out.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message in front.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue the text as it is, without a chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="How many continuations.")] = 1,
    beams: Annotated[int | None, typer.Option(min=1, help="Look for the best text with so many beams.")] = None,
    n_best: Annotated[int, typer.Option(min=1, help="How many of the beams' texts, best first, with scores.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Beams score log p / length^this.")] = 1.0,
    kind: Annotated[str, typer.Option(help="Of a model that is no run: causal, or seq2seq.")] = "causal",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write continuations of a prompt."""
    from upslope.engines.choice import engine_for
    from upslope.engines.engine import Engine
    from upslope.evaluation.sources import policy_to_sample, sampling_of, source_and_recipe
    from upslope.recipe import Recipe
    from upslope.records import Message, Prompt
    from upslope.search.beam import BeamEngine

    text = prompt if prompt is not None else sys.stdin.read()
    source, recipe = source_and_recipe(model)
    settings = recipe or Recipe.resolve({"model": {"kind": kind}})
    policy = policy_to_sample(source, settings, seed=seed)
    content: str | tuple[Message, ...] = text
    if not plain and policy.takes_chats:
        before = ({"role": "system", "content": system},) if system else ()
        content = (*before, {"role": "user", "content": text})
    engine: Engine = engine_for(policy, settings.engine.model_dump())
    if beams is not None:
        engine = BeamEngine(width=beams, length_penalty=length_penalty)
    engine.load(policy, version=0)
    sampling = dataclasses.replace(sampling_of(settings), temperature=temperature, max_new_tokens=max_new_tokens)
    console = Console(highlight=False, soft_wrap=True)
    encoded = policy.encode(Prompt(0, content))
    count = samples if beams is None else n_best
    for rollout in engine.sample([encoded], group_size=count, sampling=sampling, seed=seed):
        score = f"{rollout.metrics['beam_score']:.4f}  " if n_best > 1 and beams is not None else ""
        console.print(score + rollout.text, markup=False)
