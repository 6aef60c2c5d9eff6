"""How far sampling and training agree, by kernel: python benchmarks/agreement.py [--kernels native].

SmolLM2-135M-Instruct samples the short prompts of step_grpo, 64 rows of 64 tokens at temperature 1. Each
log-probability that the engine reports is compared with the one that the trainer computes of the same token; and some
rows are sampled again, one at a time, from the same seed: how many tokens does the batch decide, of those before a row
first differs?
The "peers" are the limits that the project sets itself for float32; float16 weights are beyond the first by design.
"""

from __future__ import annotations

from typing import Any

import workloads
from harness import Side, arguments, measure
from results import plain, report

KERNELS = ("native", "onednn", "torch", "float16")
GROUP_SIZE, NEW_TOKENS, ALONE = 8, 64, 4  # ALONE: samples of each prompt that are drawn again one at a time
GAP_LIMIT, FLIP_LIMIT = 1e-4, 1e-3


def upslope(turn: Any, *, model: str, kernels: str) -> None:
    """Counts of one engine against the trainer and against itself."""
    import torch

    from upslope import Prompt, collate
    from upslope.engines.local import LocalEngine
    from upslope.policies.causal import CausalPolicy
    from upslope.policies.loading import load_model
    from upslope.policies.sampling import Sampling

    policy = CausalPolicy(*load_model(workloads.endless(model), dtype=torch.float32))
    prompts = [policy.encode(Prompt(i, tuple(chat))) for i, chat in enumerate(workloads.short_prompts())]
    sampling = Sampling(1.0, None, None, NEW_TOKENS, ())

    def sample(max_rows: int, group_size: int) -> dict[tuple[int, int], Any]:
        engine = LocalEngine(max_rows=max_rows, cache_gib=1.0, kernels=kernels)
        engine.load(policy, version=0)
        rollouts = engine.sample(prompts, group_size=group_size, sampling=sampling, seed=0)
        return {(rollout.group, rollout.sample): rollout for rollout in rollouts}

    turn()
    while True:
        together, alone = sample(64, GROUP_SIZE), sample(1, ALONE)
        flips = [flipped(together[place].actions, rollout.actions) for place, rollout in alone.items()]
        batch, _ = collate(list(together.values()))
        gaps = []
        with torch.no_grad():
            for rows in policy.micro_batches(batch, max_tokens=1024):
                piece = batch.select(rows)
                gaps.append((policy.score(piece, sampling=sampling).logprobs - piece.engine_logprobs).abs())
        gap = torch.cat(gaps)
        counts = {"flips": sum(flip for flip, _ in flips), "compared": sum(compared for _, compared in flips)}
        turn(gap_max=float(gap.max()), gap_mean=float(gap.mean()), **counts)


def flipped(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[bool, int]:
    """Whether two rows of one seed part, and how many tokens were drawn from the same beginning."""
    parted = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
    return parted is not None, len(one) if parted is None else parted + 1


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument(
        "--kernels", choices=KERNELS, action="append", help="one kernel (may be repeated; all by default)"
    )
    options = parser.parse_args()
    model, cases, notes = workloads.folder(), [], []
    for kernels in options.kernels or KERNELS:
        side = Side(kernels, __file__, "upslope", {"model": model, "kernels": kernels})
        (found,) = measure([side], repeats=1, warmups=0, peers=options.peers)
        if found.problem:
            raise SystemExit(f"{kernels}: {found.problem}")
        (answer,) = found.answers
        limit = {"peer_name": "limit in float32"}
        cases.append(
            plain(f"{kernels}: largest gap to the trainer", answer["gap_max"], GAP_LIMIT, unit="nats", **limit)
        )
        share = answer["flips"] / answer["compared"]
        cases.append(plain(f"{kernels}: tokens that the batch decides", share, FLIP_LIMIT, unit="share", **limit))
        counted = f"{answer['flips']} of {answer['compared']} tokens differ"
        notes.append(f"{kernels}: mean gap {answer['gap_mean']:.1e} nats a token, {counted}")
    report("agreement", cases, results=options.results, notes=notes)


if __name__ == "__main__":
    main()
