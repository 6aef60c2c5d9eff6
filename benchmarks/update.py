"""Forward and backward of a training step beside plain Transformers: python benchmarks/update.py [--repeats 5].

16 rows of up to 256 tokens, of which padding to the longest would be 30%; the first 64 tokens of a row are its prompt,
no two prompts are alike. Transformers pads, computes the logits of every token, and runs at the micro-batch that was
fastest on 2 cores; upslope at its default micro-batch and at twice that. All give the gradient of the mean
log-probability of the completions' tokens. tokens/s counts real tokens, prompts included.
"""

from __future__ import annotations

from typing import Any

import workloads
from ceilings import ModelSize, find, training_s
from harness import Side, arguments, measure
from results import compare, report

ROWS, LENGTH, PROMPT = 16, 256, 64
PEER_ROWS = 4
BUDGETS = (1024, 2048)  # tokens of upslope's micro-batches: the default, and twice as many


def rows() -> list[list[int]]:
    """Random ids in rows of 40% to 100% of LENGTH, the same on both sides."""
    import torch

    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(0.4 * LENGTH, LENGTH, ROWS).round().int().tolist()
    return [torch.randint(100, 40_000, (length,), generator=generator).tolist() for length in lengths]


def upslope(turn: Any, *, model: str, micro_batch_tokens: int) -> None:
    """Gradients by CausalPolicy.score."""
    import torch

    from upslope import Prompt, Rollout, collate
    from upslope.policies.causal import CausalPolicy
    from upslope.policies.loading import load_model
    from upslope.policies.sampling import Sampling

    policy = CausalPolicy(*load_model(model, dtype=torch.float32))
    rollouts = [
        Rollout(
            prompt=Prompt(id=i, content="", tokens=tuple(row[:PROMPT])),
            group=i,
            sample=0,
            tokens=tuple(row),
            actions=tuple(row[PROMPT:]),
            positions=tuple(range(PROMPT - 1, len(row) - 1)),
            engine_logprobs=(0.0,) * (len(row) - PROMPT),
            text="",
            stop_reason="length",
        )
        for i, row in enumerate(rows())
    ]
    batch, _ = collate(rollouts)
    sampling = Sampling(1.0, None, None, LENGTH, ())
    while True:
        turn(tokens=len(batch.tokens))
        policy.module.zero_grad(set_to_none=True)
        for piece in policy.micro_batches(batch, max_tokens=micro_batch_tokens):
            scores = policy.score(batch.select(piece), sampling=sampling)
            (-scores.logprobs.sum() / len(batch.actions)).backward()


def transformers(turn: Any, *, model: str, rows_at_once: int) -> None:
    """Gradients by the model's own padded forward and full logits."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    tokens = [torch.tensor(row) for row in rows()]
    actions = sum(len(row) - PROMPT for row in tokens)
    while True:
        turn(tokens=sum(map(len, tokens)))
        network.zero_grad(set_to_none=True)
        for start in range(0, ROWS, rows_at_once):
            piece = tokens[start : start + rows_at_once]
            ids = torch.nn.utils.rnn.pad_sequence(piece, batch_first=True)
            slots = torch.arange(ids.shape[1])[None]
            lengths = torch.tensor([len(row) for row in piece])[:, None]
            logits = network(input_ids=ids, attention_mask=(slots < lengths).long(), use_cache=False).logits
            logprobs = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            chosen = (slots >= PROMPT) & (slots < lengths)
            (-logprobs[chosen[:, 1:]].sum() / actions).backward()


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--peer-rows", type=int, default=PEER_ROWS, help="rows in a micro-batch of the peer's")
    options = parser.parse_args()
    model = workloads.folder()
    size, best = ModelSize.of(model), find(options.peers)
    sides = [
        Side(
            f"upslope, {tokens} tokens in a micro-batch",
            __file__,
            "upslope",
            {"model": model, "micro_batch_tokens": tokens},
        )
        for tokens in BUDGETS
    ]
    peer = Side(
        f"Transformers, padded, {options.peer_rows} rows in a micro-batch",
        __file__,
        "transformers",
        {"model": model, "rows_at_once": options.peer_rows},
    )
    *own, padded = measure([*sides, peer], repeats=options.repeats, peers=options.peers)
    lengths = [round(LENGTH * (0.4 + 0.6 * i / (ROWS - 1))) for i in range(ROWS)]
    least = training_s(size, best, tokens=sum(lengths), actions=sum(lengths) - ROWS * PROMPT)
    title = f"{ROWS} rows up to {LENGTH} tokens"
    cases = [compare(title, side, padded, unit="tokens/s", least_s=least) for side in own]
    report("update", cases, ceilings=best.as_dict(), results=options.results)


if __name__ == "__main__":
    main()
