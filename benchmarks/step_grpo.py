"""A whole GRPO step beside TRL's GRPOTrainer: python benchmarks/step_grpo.py [--case short] [--repeats 3].

Both sample, score, differentiate and step SmolLM2-135M-Instruct in float32, all weights trained, without a reference
model, on the same prompts with the same reward; every completion has exactly 64 tokens (upslope's model declares no
end of sequence, TRL's is given min_new_tokens). TRL runs without gradient checkpointing, at the micro-batch that was
fastest within 20 GiB on 2 cores, and upslope at its default: the comparison of time. Both run again with equal rows in
a micro-batch: the comparison of memory.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from typing import Any

import workloads
from ceilings import Ceilings, ModelSize, find, generation_s, training_s
from harness import Measured, Side, arguments, measure
from results import compare, report

NEW_TOKENS = 64


@dataclass(frozen=True)
class Case:
    """Tokens of a prompt (None: the short ones), samples of each, and rows in a micro-batch of TRL's, fastest first."""

    title: str
    prompt_tokens: int | None
    group_size: int
    peer_rows: tuple[int, ...]

    def budget(self, rows: int) -> int:
        """Tokens of a micro-batch that holds so many rows, whose prompts are computed once a group."""
        groups = max(1, rows // self.group_size)
        return groups * (self.prompt_tokens or 64) + rows * NEW_TOKENS


CASES = {
    # TRL 1.16.0, s/step, short: 2 rows 41, 4 39, 8 50, 16 47, 32 54; long: 2 rows 197, 4 194, 8 223
    "short": Case("8 prompts x 4", None, 4, peer_rows=(4,)),
    "long": Case("8 prompts of 256 tokens x 8", 256, 8, peer_rows=(4, 8)),
}


def chats(tokenizer: Any, prompt_tokens: int | None) -> list[workloads.Chat]:
    """The prompts of a case."""
    return (
        workloads.short_prompts() if prompt_tokens is None else workloads.long_prompts(tokenizer, tokens=prompt_tokens)
    )


class EachStep:
    """A tracker that ends a repetition after every step of upslope's."""

    def __init__(self, turn: Any, tokens: int) -> None:
        self._turn, self._tokens = turn, tokens

    def log(self, _: int, values: Any) -> None:
        """Where a step is over (alarms and evaluations are logged as well), end the repetition."""
        if "step_s" in values:
            self._turn(tokens=self._tokens, gap_max=values.get("gap_max"), load_s=values.get("time/load"))

    def close(self) -> None:
        """Nothing is pending."""


def upslope(turn: Any, *, model: str, prompt_tokens: int | None, group_size: int, **settings: Any) -> None:
    """Steps of upslope.train."""
    from transformers import AutoTokenizer

    from upslope import Task, train

    prompts = chats(AutoTokenizer.from_pretrained(model), prompt_tokens)
    tokens = len(prompts) * group_size * NEW_TOKENS
    turn()
    train(
        model=workloads.endless(model),
        task=Task(prompts=prompts, reward=workloads.vowels),
        algorithm="grpo",
        run=f"{tempfile.mkdtemp()}/run",
        trackers=[EachStep(turn, tokens)],
        steps=10_000,
        prompts_per_step=len(prompts),
        group_size=group_size,
        kl="off",
        max_new_tokens=NEW_TOKENS,
        lr=1e-6,
        checkpoint_every_steps="none",
        **settings,
    )


def trl(turn: Any, *, model: str, prompt_tokens: int | None, group_size: int, rows: int) -> None:
    """Steps of TRL's GRPOTrainer, rows of them in a micro-batch."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    prompts = chats(tokenizer, prompt_tokens)
    samples = len(prompts) * group_size

    class EachStepOfTrainer(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn(tokens=samples * NEW_TOKENS)

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=samples // rows,
        num_generations=group_size,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        temperature=1.0,
        top_k=0,
        beta=0.0,
        learning_rate=1e-6,
        max_steps=10_000,
        **workloads.TRL,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [
            workloads.vowels(completion[0]["content"]) for completion in completions
        ],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[EachStepOfTrainer()],
    )
    turn()
    trainer.train()


def least_s(case: Case, size: ModelSize, best: Ceilings) -> float:
    """What the ceilings allow: prompts computed once a group, in generation and in the update."""
    rows, prompt_tokens = 8 * case.group_size, 8 * (case.prompt_tokens or 64)
    actions = rows * NEW_TOKENS
    sampling = generation_s(size, best, prompt_tokens=prompt_tokens, rows=rows, new_tokens=NEW_TOKENS)
    return sampling + training_s(size, best, tokens=prompt_tokens + actions, actions=actions)


def loading(measured: Measured) -> str:
    """What the engine's new weights took of each step."""
    seconds = [answer["load_s"] for answer in measured.answers]
    return f"weights into the engine in {statistics.median(seconds):.2f} s ({min(seconds):.2f} .. {max(seconds):.2f})"


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--case", choices=CASES, action="append", help="one case (may be repeated; all by default)")
    parser.add_argument("--peer-rows", type=int, help="rows in a micro-batch of TRL's, to find its fastest")
    options = parser.parse_args()
    model = workloads.folder()
    size, best, cases, notes = ModelSize.of(model), find(options.peers), [], []
    for case in (CASES[name] for name in options.case or CASES):
        shared = {"model": model, "prompt_tokens": case.prompt_tokens, "group_size": case.group_size}
        tried = [options.peer_rows] if options.peer_rows else case.peer_rows
        least = least_s(case, size, best)
        for rows in tried:  # one number at a time: five sides would not fit in 24 GiB
            in_rows = f"{rows} rows in a micro-batch"
            sides = [
                Side("upslope", __file__, "upslope", shared),
                Side(f"upslope, {in_rows}", __file__, "upslope", shared | {"micro_batch_tokens": case.budget(rows)}),
                Side(f"TRL, {in_rows}", __file__, "trl", shared | {"rows": rows}, "trl"),
            ]
            fastest = rows == tried[0]  # the others are here for their memory, which one step shows
            repeats = options.repeats if fastest else 1
            *own, peer = measure(sides if fastest else sides[1:], repeats=repeats, peers=options.peers)
            cases += [compare(case.title, side, peer, unit="s/step", least_s=least) for side in own]
            notes += [f"{case.title}, {side.side.name}: {loading(side)}" for side in own if side.answers]
    report("step_grpo", cases, ceilings=best.as_dict(), results=options.results, notes=notes)


if __name__ == "__main__":
    main()
