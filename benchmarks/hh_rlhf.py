"""A reward model of what people preferred, and PPO against it: python benchmarks/hh_rlhf.py [--seeds 1].

hh_rlhf with SmolLM2-135M-Instruct. The reward model (examples/recipes/hh_reward_model.toml) reads 1,000 pairs of at
most 256 tokens once; its accuracy on the held-out pairs stands beside that of length alone, by whichever of "the longer
one" and "the shorter one" is better on these very pairs. PPO (examples/recipes/hh_ppo.toml) then raises its score on
held-out prompts, greedily decoded; the words shared with the preferred answer, the share of repeated trigrams and the
length are measured on the same answers and not paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
from learning import EXAMPLES, arguments, folder_of, minutes, paired, trained
from results import Case, learnt, report

from upslope import Recipe
from upslope.evaluation.judgements import right
from upslope.report.run import Run
from upslope.tasks import task_of

Sample = Mapping[str, Any]
UNPAID: Mapping[str, Callable[[Sample], float]] = {
    "words shared with the preferred answer (ROUGE-1)": lambda sample: sample["metrics"]["rouge_1"],
    "trigrams that stand in the answer earlier": lambda sample: -sample["metrics"]["repetition_penalty"],
    "length, tokens": lambda sample: float(len(sample["actions"])),
}
PPO = "recipes/hh_ppo.toml"
LAST = 5  # steps whose mean KL is told


def judged(run: Run) -> tuple[list[float], list[float]]:
    """Of each held-out pair: whether length alone orders it right, and whether the reward model does."""
    *_, event = run.events("evaluate")
    prompts = {str(prompt.id): prompt.columns for prompt in task_of(Recipe.load(run.recipe_path)).eval_prompts}
    pairs = [prompts[name] for name in event["values"]]
    longer = [right(len(pair["chosen"]) - len(pair["rejected"])) for pair in pairs]
    best = longer if fmean(longer) >= 0.5 else [1.0 - value for value in longer]
    return best, list(event["values"].values())


def answered(run: Run) -> tuple[list[Sample], list[Sample]]:
    """The scored answers to the same held-out prompts before the first step and after the last."""
    steps: dict[int, dict[int, Sample]] = {}
    for sample in run.samples(kind="held_out"):
        if sample["rewards"]:
            steps.setdefault(sample["step"], {})[sample["prompt_id"]] = sample
    first, last = steps[min(steps)], steps[max(steps)]
    both = [name for name in first if name in last]
    return [first[name] for name in both], [last[name] for name in both]


def score(sample: Sample) -> float:
    """What the reward model paid an answer."""
    return float(sample["metrics"]["reward_model"])


def values(
    answers: list[tuple[list[Sample], list[Sample]]], value: Callable[[Sample], float]
) -> tuple[list[list[float]], list[list[float]]]:
    """A number of every answer, by seed: before and after."""
    before, after = ([[value(sample) for sample in rows] for rows in side] for side in zip(*answers, strict=True))
    return before, after


def case_of(name: str, before: list[list[float]], after: list[list[float]], **said: Any) -> Case:
    """Means before and after, by seed and row, as a case."""
    size = min(map(len, before))  # rows that could be scored under every seed
    counts = [np.array([row[:size] for row in each]) for each in (before, after)]
    return learnt(name, *paired(*counts, lambda sums: sums / size), **said)


def main() -> None:
    options = arguments(__doc__, seeds=1).parse_args()
    folder, runs, pairs, answers = folder_of(options), [], [], []
    for seed in range(options.seeds):
        how: dict[str, Any] = {"seed": seed, "limit": options.limit}
        model = trained("recipes/hh_reward_model.toml", folder / f"reward-{seed}", **how)
        functions = list(Recipe.load(EXAMPLES / PPO).reward.functions)
        functions[0] = f"model:{model.folder}"
        runs += [model, trained(PPO, folder / f"ppo-{seed}", **how, **{"reward.functions": functions})]
        pairs.append(judged(model))
        answers.append(answered(runs[-1]))
    sides = {"names": ("start", "PPO")}
    cases = [
        case_of(
            "pair accuracy, held out",
            *zip(*pairs, strict=True),
            names=("length alone", "reward model"),
            unit="share",
            wanted="0.60, gain above 0",
        ),
        case_of("score of the reward model", *values(answers, score), unit="score", wanted="gain above 0", **sides),
        *(
            case_of(name, *values(answers, value), unit="unpaid", wanted="shown", **sides)
            for name, value in UNPAID.items()
        ),
    ]
    (calibration, *_), kls = reversed([*runs[0].events("calibration")]), [run.metrics["kl_row"] for run in runs[1::2]]
    kl = fmean(fmean([each[step] for step in sorted(each)[-LAST:]]) for each in kls)
    error = calibration["expected_calibration_error"]
    notes = [
        f"Expected calibration error {error:.3f} on {calibration['pairs']} held-out pairs (seed 0)",
        f"KL from the starting model: {kl:.2f} nats a row (mean of the last {LAST} steps)",
        minutes(*runs),
    ]
    report("hh_rlhf", cases, results=options.results, notes=notes)


if __name__ == "__main__":
    main()
