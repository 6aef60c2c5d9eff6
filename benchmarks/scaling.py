"""How the cost of sampling and of an update grows: python benchmarks/scaling.py [--repeats 3].

A small random Llama, 4 prompts; prompt length, group size, completion length and model width are doubled one at a time
from a base. Each point is the median time of sampling and of forward + backward. The figure per curve is the growth
over the last doubling beside that of a straight line through the origin: 2, and for the width, which is plotted against
multiply-adds a token, theirs. Needs matplotlib (the extra `bench`) for the plot, results/scaling.png.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from harness import Side, arguments, measure
from results import plain, report

BASE = {"prompt": 64, "group": 4, "completion": 32, "width": 256}
AXES = {
    "prompt": (64, 128, 256, 512),
    "group": (2, 4, 8, 16),
    "completion": (16, 32, 64, 128),
    "width": (128, 256, 512, 1024),
}
NAMES = {
    "prompt": "tokens of a prompt",
    "group": "samples of a prompt",
    "completion": "tokens of a completion",
    "width": "million multiply-adds a token",
}
PROMPTS, LAYERS, VOCABULARY = 4, 4, 8192
PARTS = ("sampling", "update")


def macs(width: int) -> int:
    """Multiply-adds a token: attention with as many key as query heads, a feed-forward of 4 widths, and the head."""
    return LAYERS * (4 * width**2 + 12 * width**2) + VOCABULARY * width


def policy_of(width: int) -> Any:
    """A random Llama of this width, without an end of sequence."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from upslope.policies.causal import CausalPolicy
    from upslope.policies.tiny import character_tokenizer

    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    config = LlamaConfig(**shape, **ends, num_hidden_layers=LAYERS, vocab_size=VOCABULARY, max_position_embeddings=2048)
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    return CausalPolicy(LlamaForCausalLM(config), tokenizer)


def upslope(turn: Any) -> None:
    """One point of one axis a repetition, axis after axis, over and over."""
    policies = {width: policy_of(width) for width in AXES["width"]}
    points = [BASE | {axis: value} for axis, values in AXES.items() for value in values]
    for point in points:
        _measure(policies[point["width"]], **point)  # what is compiled or allocated at first use is timed for none
    turn()
    while True:
        for point in points:
            turn(**_measure(policies[point["width"]], **point))


def _measure(policy: Any, *, prompt: int, group: int, completion: int, width: int) -> dict[str, float]:
    """Seconds of sampling and of forward + backward at one point."""
    import torch

    from upslope import Prompt, collate
    from upslope.engines.local import LocalEngine
    from upslope.policies.sampling import Sampling
    from upslope.settings import EngineSettings, TrainingSettings

    ids = torch.randint(3, 98, (PROMPTS, prompt), generator=torch.Generator().manual_seed(width)).tolist()
    prompts = [Prompt(id=i, content="", tokens=tuple(row)) for i, row in enumerate(ids)]
    sampling = Sampling(1.0, None, None, completion, ())
    engine = LocalEngine(**EngineSettings().model_dump())
    engine.load(policy, version=0)
    started = time.perf_counter()
    rollouts = engine.sample(prompts, group_size=group, sampling=sampling, seed=0)
    sampled = time.perf_counter()
    batch, _ = collate(rollouts)
    policy.module.zero_grad(set_to_none=True)
    for piece in policy.micro_batches(batch, max_tokens=TrainingSettings().micro_batch_tokens):
        policy.score(batch.select(piece), sampling=sampling).logprobs.sum().backward()
    return {"sampling": sampled - started, "update": time.perf_counter() - sampled}


def curves(answers: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """(axis, part) -> its x and its median seconds."""
    names = [(axis, value) for axis, values in AXES.items() for value in values]
    medians = [
        {part: statistics.median(answer[part] for answer in answers[i :: len(names)]) for part in PARTS}
        for i in range(len(names))
    ]
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for (axis, value), seconds in zip(names, medians, strict=True):
        for part in PARTS:
            xs, ys = found.setdefault((axis, part), ([], []))
            xs.append(macs(value) / 1e6 if axis == "width" else value)
            ys.append(seconds[part])
    return found


def plot(found: dict[tuple[str, str], tuple[list[float], list[float]]], path: Path) -> None:
    """Four panels, one an axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(AXES), figsize=(14, 3.4), layout="constrained")
    for panel, axis in zip(panels, AXES, strict=True):
        for part in PARTS:
            panel.plot(*found[axis, part], marker="o", label=part)
        panel.set(xlabel=NAMES[axis], ylabel="seconds", xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    options = arguments(__doc__, repeats=3).parse_args()
    count = sum(map(len, AXES.values()))
    (result,) = measure(
        [Side("upslope", __file__, "upslope")], repeats=options.repeats * count, warmups=0, peers=options.peers
    )
    if result.problem:
        raise SystemExit(result.problem)
    found, cases = curves(result.answers), []
    for (axis, part), (xs, ys) in found.items():
        linear = xs[-1] / xs[-2]
        case = plain(f"{part} by {NAMES[axis]}", ys[-1] / ys[-2], linear, unit="x, last doubling", peer_name="linear")
        cases.append(case | {"x": xs, "seconds": ys, "upslope_versions": result.versions})
    report("scaling", cases, results=options.results)
    plot(found, options.results / "scaling.png")


if __name__ == "__main__":
    main()
