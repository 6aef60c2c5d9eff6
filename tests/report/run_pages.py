"""Run folders written through the run folder's own interface, for the tests of what is made of them."""

from __future__ import annotations

import random

from upslope.recipe import Recipe
from upslope.records import Prompt, Rollout
from upslope.report.run import Run

HOSTILE = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>"


def recipe_toml(**settings):
    return Recipe.resolve({}, {"trackers": [], "steps": 10, **settings}).to_toml()


def rollout(prompt, *, group=0, sample=0, words=("four", " two"), reward=1.0, version=0, stop_reason="eos"):
    """A row that wrote these words, one token each, paid at its end."""
    first = 3
    return Rollout(
        prompt=prompt,
        group=group,
        sample=sample,
        tokens=(1, 2, 3, *range(10, 10 + len(words))),
        actions=tuple(range(10, 10 + len(words))),
        positions=tuple(range(first - 1, first - 1 + len(words))),
        engine_logprobs=(-0.5,) * len(words),
        text="".join(words),
        stop_reason=stop_reason,
        version=version,
        rewards=(0.0,) * (len(words) - 1) + (reward,),
        metrics={"exact": reward, "reward": reward},
    )


def chat(index, text):
    return Prompt(index, ({"role": "system", "content": "Be brief."}, {"role": "user", "content": text}))


def evaluate(run, step, right, *, prompts=40, words=("no",)):
    """An evaluation at which the first `right` prompts were solved, and its rollouts."""
    values = {str(1000 + index): float(index < right) for index in range(prompts)}
    run.log("evaluate", step=step, metric=right / prompts, prompts=prompts, failed=0, values=values)
    rows = [
        rollout(chat(1000 + index, f"held out {index}"), words=words, reward=values[str(1000 + index)])
        for index in range(3)
    ]
    run.log_samples(step, rows, {"pieces": [list(words)] * 3}, kind="held_out")


def train(run, step, *, rows=4, length=6, critic=True, reference=True, generator=None):
    """One training step and its samples; rewards rise with the steps."""
    draw = generator or random.Random(step)
    kept, columns = [], {"pieces": [], "old_logprobs": [], "advantages": []}
    columns |= {"values": []} if critic else {}
    columns |= {"ref_logprobs": []} if reference else {}
    for index in range(rows):
        words = [draw.choice((" one", " two", " three", "\n", "é")) for _ in range(length)]
        one = rollout(
            chat(7, "count"),
            group=index // 2,
            sample=index % 2,
            words=words,
            reward=step / 10 + index,
            version=step - 1,
        )
        kept.append(one)
        columns["pieces"].append(words)
        for name in columns.keys() - {"pieces"}:
            columns[name].append([round(draw.uniform(-2, 1), 3) for _ in words])
    run.log_samples(step, kept, columns)
    metrics = {
        "reward": step / 10,
        "reward/exact": step / 20,
        "entropy": 2 / step,
        "grad_norm": 1.0 + step,
        "clip_fraction": 0.0,
    }
    metrics |= {
        "step_s": 2.0,
        "time/decode": 0.5,
        "time/backward": 1.5,
        "tokens_per_s/step": 100.0,
        "length": float(length),
    }
    metrics |= {"explained_variance": 0.1} if critic else {}
    metrics |= {"kl": 0.01 * step} if reference else {}
    run.log("train", step=step, **metrics)


def finished(folder, *, steps=5, **options):
    """A run of some steps with an evaluation at either end, an alarm, and a final model."""
    run = Run.create(folder, recipe_toml(steps=steps))
    evaluate(run, 0, 4)
    for step in range(1, steps + 1):
        train(run, step, **options)
        if step == 2:
            evaluate(run, step, 15, words=("no", " idea"))
    run.log("alarm", step=2, name="entropy_collapse", state="begin", text="entropy fell below 0.1: raise entropy_coef")
    run.log("alarm", step=4, name="entropy_collapse", state="end", text="entropy is back")
    evaluate(run, steps, 30, words=("yes", " indeed"))
    run.model_path.mkdir()
    (run.model_path / "config.json").write_text("{}")
    run.log("finished", step=steps, reason="training.steps is reached", train_s=10.0)
    return run
