"""A whole PPO step beside TRL 1.12.0's PPOTrainer, its last: python benchmarks/step_ppo.py [--repeats 2].

Both sample 64 tokens from each of 8 prompts x 4, score them with the same tiny reward model (a Llama-like classifier of
random weights, called in the trainer's process), take the values, the old and the reference's log-probabilities, GAE,
and EPOCHS passes over the batch with one optimiser step each, all in float32. TRL trains a value model of its own, a
whole second transformer; upslope runs that way too (critic = "separate"), and with its default value head, which
shares the policy's trunk: less work for the same algorithm. TRL takes a prompt as often as it has samples.
"""

from __future__ import annotations

import tempfile
from typing import Any

import workloads
from ceilings import ModelSize, find, generation_s, training_s
from harness import Side, arguments, measure
from results import compare, report
from step_grpo import EachStep

GROUP_SIZE, NEW_TOKENS, EPOCHS = 4, 64, 1
PEER_ROWS = 4
TRUNKS = {"separate": 2, "head": 1}  # of upslope, by where its critic reads


def reward_model(vocabulary: int) -> Any:
    """A sequence classifier with one label and random weights, the same on both sides."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8}
    config = LlamaConfig(**shape, vocab_size=vocabulary, num_labels=1, pad_token_id=0)
    return LlamaForSequenceClassification(config).eval()


def upslope(turn: Any, *, model: str, critic: str, epochs: int) -> None:
    """Steps of upslope.train."""
    import torch
    from transformers import AutoTokenizer

    from upslope import Task, train

    tokenizer = AutoTokenizer.from_pretrained(model)
    judge = reward_model(len(tokenizer))

    def judged(prompts: list[Any], completion_ids: list[list[int]]) -> list[float]:
        rows = [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) + list(ids)
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        with torch.no_grad():
            return judge(input_ids=padded, attention_mask=(padded != 0).long()).logits[:, 0].tolist()

    prompts = workloads.short_prompts()
    turn()
    train(
        model=workloads.endless(model),
        task=Task(prompts=prompts, reward=judged),
        algorithm="ppo",
        run=f"{tempfile.mkdtemp()}/run",
        trackers=[EachStep(turn, len(prompts) * GROUP_SIZE * NEW_TOKENS)],
        steps=10_000,
        prompts_per_step=len(prompts),
        group_size=GROUP_SIZE,
        critic=critic,
        epochs=epochs,
        max_new_tokens=NEW_TOKENS,
        lr=1e-6,
        isolation="none",
        checkpoint_every_steps="none",
    )


def trl(turn: Any, *, model: str, epochs: int, rows: int) -> None:
    """Steps of TRL's PPOTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.unk_token  # it pads by id, and its own padding also ends every chat message
    chats = [chat for chat in workloads.short_prompts() for _ in range(GROUP_SIZE)]
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]

    class EachStepOfTrainer(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn(tokens=len(chats) * NEW_TOKENS)

    load = {"pretrained_model_name_or_path": model, "dtype": torch.float32}
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=len(chats) // rows,
        local_rollout_forward_batch_size=rows,
        num_mini_batches=1,
        num_ppo_epochs=epochs,
        response_length=NEW_TOKENS,
        temperature=1.0,
        kl_coef=0.05,
        learning_rate=1e-6,
        total_episodes=10_000 * len(chats),
        num_sample_generations=0,
        **workloads.TRL,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(**load),
        ref_model=AutoModelForCausalLM.from_pretrained(**load),
        reward_model=reward_model(len(tokenizer)),
        value_model=AutoModelForSequenceClassification.from_pretrained(**load, num_labels=1),
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        callbacks=[EachStepOfTrainer()],
    )
    turn()
    trainer.train()


def least_s(size: ModelSize, best: Any, *, epochs: int, trunks: int) -> float:
    """What the ceilings allow: sampling, the reference's and the policy's forward, and the epochs; critic included."""
    prompt_tokens, rows = 8 * 64, 8 * GROUP_SIZE
    actions = rows * NEW_TOKENS
    tokens = prompt_tokens + actions
    sampling = generation_s(size, best, prompt_tokens=prompt_tokens, rows=rows, new_tokens=NEW_TOKENS)
    scoring = training_s(size, best, tokens=(1 + trunks) * tokens, actions=2 * actions, passes=1)
    return sampling + scoring + epochs * training_s(size, best, tokens=trunks * tokens, actions=actions)


def main() -> None:
    parser = arguments(__doc__, repeats=2)
    parser.add_argument("--critic", choices=TRUNKS, action="append", help="one way (may be repeated; both by default)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the batch, on both sides")
    parser.add_argument("--peer-rows", type=int, default=PEER_ROWS, help="rows in a micro-batch of TRL's")
    options = parser.parse_args()
    model = workloads.folder()
    shared = {"model": model, "epochs": options.epochs}
    peer = Side("TRL 1.12.0", __file__, "trl", shared | {"rows": options.peer_rows}, "trl_ppo")
    size, best, cases = ModelSize.of(model), find(options.peers), []
    for critic in options.critic or TRUNKS:  # one at a time: three sides would not fit in 24 GiB
        own = Side(f"upslope, critic = {critic}", __file__, "upslope", shared | {"critic": critic})
        results = measure([own, peer], repeats=options.repeats, peers=options.peers)
        least = least_s(size, best, epochs=options.epochs, trunks=TRUNKS[critic])
        cases.append(compare(f"8 prompts x {GROUP_SIZE}, critic = {critic}", *results, unit="s/step", least_s=least))
    report("step_ppo", cases, ceilings=best.as_dict(), results=options.results)


if __name__ == "__main__":
    main()
