"""Sampling beside Transformers' generate: python benchmarks/rollout.py [--batch 16] [--repeats 3].

SmolLM2-135M-Instruct in float32 samples exactly 64 tokens at temperature 1 after 64 random tokens, each row with its
own prompt. Transformers runs with its growing cache, its static cache, and its continuous batching (generate_batch);
top-k is off, and min_new_tokens holds the length that upslope's side gets from a model without end-of-sequence ids.
upslope's figure includes taking the log-probability of every token, which Transformers' does not. Every repetition also
samples a single token: the difference of the two is decoding alone, 63 tokens a row without the prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import workloads
from ceilings import ModelSize, find, generation_s
from harness import Measured, Side, arguments, measure
from results import compare, report

PROMPT_TOKENS = NEW_TOKENS = 64
BATCHES = (1, 16, 64)
PEERS = ("dynamic cache", "static cache", "continuous batching")
ENGINES: dict[str, dict[str, Any]] = {
    "upslope": {},
    "upslope, onednn": {"kernels": "onednn"},
    "upslope, torch": {"kernels": "torch"},
    "upslope, float16": {"kernels": "float16"},
}
"""upslope's variants: name -> settings of the recipe's [engine] section."""
CONTINUOUS_LIMIT_S = 120.0


def prompts(batch: int) -> Any:
    """[batch, PROMPT_TOKENS] random ids, the same on both sides."""
    import torch

    return torch.randint(100, 40_000, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))


def upslope(turn: Any, *, model: str, batch: int, engine: dict[str, Any]) -> None:
    """Samples of the local engine."""
    import torch

    from upslope.engines.local import LocalEngine
    from upslope.policies.causal import CausalPolicy
    from upslope.policies.loading import load_model
    from upslope.policies.sampling import Sampling
    from upslope.records import Prompt
    from upslope.settings import EngineSettings

    policy = CausalPolicy(*load_model(workloads.endless(model), dtype=torch.float32))
    sampler = LocalEngine(**EngineSettings(**engine).model_dump())
    sampler.load(policy, version=0)
    rows = [Prompt(id=i, content="", tokens=tuple(ids)) for i, ids in enumerate(prompts(batch).tolist())]

    def lengths(new_tokens: int) -> list[int]:
        sampling = Sampling(1.0, None, None, new_tokens, ())
        rollouts = sampler.sample(rows, group_size=1, sampling=sampling, seed=0)
        return [len(rollout.actions) for rollout in rollouts]

    turn()
    while True:
        turn(**timed(lengths, batch), backend=str(dict(sampler.backend)))


def transformers(turn: Any, *, model: str, batch: int, way: str) -> None:
    """Samples of Transformers, in one of its ways."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = prompts(batch)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generate = continuous if way == "continuous batching" else padded
    turn()
    while True:
        turn(**timed(lambda new_tokens: generate(network, ids, way, new_tokens), batch))


def timed(lengths: Callable[[int], list[int]], batch: int) -> dict[str, Any]:
    """A repetition's answer: what the whole and decoding alone took. `lengths` samples so many tokens a row."""
    seconds = {}
    for new_tokens in (1, NEW_TOKENS):
        started = time.perf_counter()
        found = lengths(new_tokens)
        seconds[new_tokens] = time.perf_counter() - started
        if found != [new_tokens] * batch:
            raise RuntimeError(f"sampled {found[:3]}... tokens, not {new_tokens} for each of {batch} rows")
    whole = {"seconds": seconds[NEW_TOKENS], "tokens": batch * NEW_TOKENS}
    return whole | {"decode_s": seconds[NEW_TOKENS] - seconds[1], "decode_tokens": batch * (NEW_TOKENS - 1)}


def decoding(measured: Measured) -> Measured:
    """The same repetitions, by what decoding alone took."""
    alone = [{"seconds": answer["decode_s"], "tokens": answer["decode_tokens"]} for answer in measured.answers]
    answers = [answer | decode for answer, decode in zip(measured.answers, alone, strict=True)]
    return replace(measured, answers=answers)


def padded(network: Any, ids: Any, way: str, new_tokens: int) -> list[int]:
    """New tokens of each row, by generate."""
    import torch

    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": 2}
    settings |= {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    settings |= {"cache_implementation": "static"} if way == "static cache" else {}
    with torch.inference_mode():
        rows = network.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return [rows.shape[1] - ids.shape[1]] * len(rows)


def continuous(network: Any, ids: Any, _: str, new_tokens: int) -> list[int]:
    """New tokens of each row, by generate_batch; its cache, else most of the machine's memory, holds the rows twice.

    It computes in a thread of its own, whose tensors an inference mode out here would make read-only.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": new_tokens}
    rows = network.generate_batch(
        ids.tolist(),
        generation_config=GenerationConfig(**settings, eos_token_id=-1, pad_token_id=2),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=2 * len(ids), max_batch_tokens=ids.numel()),
    )
    return [len(row.generated_tokens) for row in rows.values()]


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--batch", type=int, action="append", help=f"rows at a time (may be repeated; {BATCHES})")
    options = parser.parse_args()
    model = workloads.folder()
    size, best, cases, backends = ModelSize.of(model), find(options.peers), [], {}
    for batch in options.batch or BATCHES:
        shared = {"model": model, "batch": batch}
        own = [Side(name, __file__, "upslope", shared | {"engine": engine}) for name, engine in ENGINES.items()]
        peers = [
            Side(
                f"Transformers, {way}",
                __file__,
                "transformers",
                shared | {"way": way},
                most_repeats=1 if way == "continuous batching" else None,
            )
            for way in PEERS
        ]
        results = measure([*own, *peers], repeats=options.repeats, peers=options.peers, timeout_s=CONTINUOUS_LIMIT_S)
        least = generation_s(size, best, prompt_tokens=batch * PROMPT_TOKENS, rows=batch, new_tokens=NEW_TOKENS)
        least_decoding = generation_s(size, best, prompt_tokens=0, rows=batch, new_tokens=NEW_TOKENS - 1)
        backends |= {r.side.name: r.answers[-1]["backend"] for r in results[: len(own)] if r.answers}
        default, dynamic = results[0], results[len(own)]
        pairs = [(default, peer) for peer in results[len(own) :]] + [
            (other, dynamic) for other in results[1 : len(own)]
        ]
        for ours, peer in pairs:
            cases.append(compare(f"batch {batch}, whole", ours, peer, unit="tokens/s", least_s=least))
            alone = decoding(ours), decoding(peer)
            cases.append(compare(f"batch {batch}, decoding", *alone, unit="tokens/s", least_s=least_decoding))
    notes = [f"{name} computes by {backend}" for name, backend in backends.items()]
    report("rollout", cases, ceilings=best.as_dict(), results=options.results, notes=notes)


if __name__ == "__main__":
    main()
