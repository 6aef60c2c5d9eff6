"""What policy gradient adds to 200 labels: python benchmarks/spam.py [--seeds 3].

sms_spam with minilm-l6. By every seed another 200 of the training messages keep their label and train a classifier
(examples/recipes/spam_warm.toml); from there, policy gradient on the messages that are left, of which it sees the
reward of its answers alone (examples/recipes/spam.toml). Macro F1 on all held-out messages of both, by their most
likely label. The variance is that of the gradient where policy gradient begins, over random batches of messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from learning import answers, arguments, by_seed, folder_of, macro_f1, minutes, paired, trained
from results import learnt, report
from torch import Tensor

from upslope import Recipe, collate
from upslope.engines.single_pass import SinglePassEngine
from upslope.evaluation.labels import decision_counts
from upslope.evaluation.sources import policy_to_sample, sampling_of
from upslope.policies.policy import Policy
from upslope.policies.sampling import Sampling
from upslope.records import Rollout
from upslope.report.run import Run
from upslope.tasks import task_of

BATCHES, MESSAGES = 40, 32


def variance_saved(run: Run, *, batches: int) -> float:
    """Total variance of the gradient with one sampled answer a message, over that of the sum over all answers."""
    recipe = Recipe.load(run.recipe_path)
    task, sampling = task_of(recipe), sampling_of(recipe)
    policy = policy_to_sample(recipe.model.name, recipe, labels=task.labels, seed=0)
    engine, generator = SinglePassEngine(), torch.Generator().manual_seed(0)
    engine.load(policy, version=0)
    sampled, exact = [], []
    for seed in range(batches):
        chosen = torch.randperm(len(task.prompts), generator=generator)[:MESSAGES].tolist()
        prompts = [policy.encode(task.prompts[index]) for index in chosen]
        rows = engine.sample(prompts, group_size=1, sampling=sampling, seed=seed)
        sampled.append(gradient(policy, rows, sampling, expected=False))
        exact.append(gradient(policy, engine.every_answer(prompts, sampling=sampling), sampling, expected=True))
    return float(torch.stack(sampled).var(0).sum() / torch.stack(exact).var(0).sum())


def gradient(policy: Policy, rows: Sequence[Rollout], sampling: Sampling, *, expected: bool) -> Tensor:
    """Of the mean reward [P]: of one sampled answer a message, less the batch's mean; or of all answers, exactly."""
    rewards = torch.tensor([float(row.text == row.prompt.columns["label"]) for row in rows])
    policy.module.zero_grad()
    logprobs = policy.score(collate(rows)[0], sampling=sampling).logprobs
    terms = logprobs.exp() * rewards if expected else logprobs * (rewards - rewards.mean())
    (terms.sum() / MESSAGES).backward()
    return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])


def main() -> None:
    options = arguments(__doc__, seeds=3).parse_args()
    folder, limit = folder_of(options), options.limit
    runs, counts = [], []
    for seed in range(options.seeds):
        draw = {"task.options.seed": seed}
        warm = trained("recipes/spam_warm.toml", folder / f"warm-{seed}", seed=seed, limit=limit, **draw)
        draw["model.name"] = str(warm.model_path)
        run = trained("recipes/spam.toml", folder / f"spam-{seed}", seed=seed, limit=limit, **draw)
        runs += [warm, run]
        found = [answers(each, limit=limit) for each in (warm, run)]
        counts.append([decision_counts(rows, labels=("ham", "spam"), column="label") for rows in found])
    before, after = np.swapaxes(np.array(counts), 0, 1)
    case = learnt(
        f"macro F1, mean of {options.seeds} seeds",
        *paired(before, after, macro_f1),
        names=("200 labels", "and policy gradient"),
        unit="F1",
        wanted=">= 0.97, gain above 0",
    )
    saved = variance_saved(runs[1], batches=BATCHES if limit is None else limit)
    notes = [
        f"Macro F1 by seed: {by_seed(before, after, macro_f1)}",
        f"Variance of the gradient of one sampled answer a message, over that of all answers: {saved:.1f} times",
        minutes(*runs),
    ]
    report("spam", [case], results=options.results, notes=notes)


if __name__ == "__main__":
    main()
