"""Reward functions written for TRL's GRPOTrainer, used as they are: `python examples/trl_reward.py`.

Both functions have TRL's signature: lists of prompts, completions and columns in, a list of floats out. Completions of
chats arrive as lists of messages, `log_metric` writes to the run's metrics, and None says that a row is not judged.
"""

# ruff: noqa: ARG001 - the signature is TRL's

import re
import sys

import upslope


def format_reward(completions, **kwargs):
    """1 where the completion holds an <answer>...</answer>, else 0."""
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.search(r"<answer>.+</answer>", content, re.DOTALL) else 0.0 for content in contents]


def accuracy_reward(prompts, completions, solution, log_metric=None, **kwargs):
    """1 where the answer is the solution's, 0 where it is another, None where the row has no solution."""
    rewards = []
    for completion, expected in zip(completions, solution, strict=True):
        found = re.search(r"<answer>(.+?)</answer>", completion[0]["content"], re.DOTALL)
        given = found.group(1).strip() if found else None
        rewards.append(None if expected is None else float(given == expected))
    if log_metric:
        log_metric("answers_given", sum(reward is not None for reward in rewards))
    return rewards


def main(model="smollm2-135m-instruct", **settings):
    questions = {"What is the capital of France?": "Paris", "What is 2 + 2?": "4", "Name any colour.": None}
    system = "Write your answer inside <answer> and </answer>."
    prompts = [
        {"prompt": [{"role": "system", "content": system}, {"role": "user", "content": question}], "solution": solution}
        for question, solution in questions.items()
    ]
    task = upslope.Task(prompts=prompts, reward=[format_reward, upslope.RewardTerm(accuracy_reward, 2.0)])
    chosen = {"group_size": 8, "prompts_per_step": 3, "max_new_tokens": 32, "steps": 20}
    run = upslope.train(model=model, task=task, algorithm="grpo", **(chosen | settings))
    print(run)
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
