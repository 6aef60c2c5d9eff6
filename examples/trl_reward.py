"""Reward functions written for TRL's GRPOTrainer, used as they are: `python examples/trl_reward.py`.

Both functions have TRL's signature: lists of prompts, completions and columns in, a list of floats out. Completions of
chats arrive as lists of messages, `log_metric` writes to the run's metrics, and None says that a row is not judged.
"""

# ruff: noqa: ARG001 - the signature is TRL's

import sys

import upslope


def brief_reward(completions, completion_ids, **kwargs):
    """0.1 less for every ten tokens."""
    return [-0.01 * len(ids) for ids in completion_ids]


def accuracy_reward(prompts, completions, solution, log_metric=None, **kwargs):
    """1 where the solution is in the completion, 0 where it is not, None where there is no solution."""
    contents = [completion[0]["content"] for completion in completions]
    pairs = zip(contents, solution, strict=True)
    rewards = [None if expected is None else float(expected in content) for content, expected in pairs]
    if log_metric:
        log_metric("judged", sum(reward is not None for reward in rewards))
    return rewards


def main(model="smollm2-135m-instruct", **settings):
    questions = {"What is the capital of France?": "Paris", "What is 2 + 2?": "4", "Name any colour.": None}
    prompts = [
        {"prompt": [{"role": "user", "content": question}], "solution": solution}
        for question, solution in questions.items()
    ]
    task = upslope.Task(prompts=prompts, reward=[accuracy_reward, brief_reward])
    chosen = {"group_size": 8, "prompts_per_step": 3, "max_new_tokens": 32, "steps": 20}
    run = upslope.train(model=model, task=task, algorithm="grpo", **(chosen | settings))
    print(run)
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
