"""A task's metric over held-out prompts: what is decoded, what is counted, what is refused."""

import pytest
import torch

from upslope.engines.local import LocalEngine
from upslope.errors import DataError, RecipeError, RewardError
from upslope.evaluation.evaluate import evaluate
from upslope.evaluation.metrics import measure
from upslope.rewards import Scorer
from upslope.tasks import Task

PROMPTS = ["1+1=", "2+2=", "3+3=", "what", "ab"]


def rewards():
    """length, one that fails on a prompt, and one that always fails: closures, which a worker gets by value."""

    def length(completion):
        return float(len(completion))

    def fails_on_what(prompt, completion):
        if prompt == "what":
            raise ValueError("not this one")
        return float(len(completion))

    def fails_always(completion):
        raise ValueError("never")

    return length, fails_on_what, fails_always


length, fails_on_what, fails_always = rewards()


def task_of(reward):
    return Task(prompts=["x"], reward=reward, eval_prompts=PROMPTS, name="lengths")


def greedy_lengths(policy, count):
    """Length of the text of a greedy continuation of each prompt, by the model's plain forward."""
    found = []
    for text in PROMPTS:
        ids = policy.tokenizer(text)["input_ids"]
        written = []
        while len(written) < count and policy.tokenizer.eos_token_id not in written:
            with torch.no_grad():
                written.append(int(policy.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
        found.append(float(len(policy.tokenizer.decode(written, skip_special_tokens=True))))
    return found


def test_measure_scores_one_greedy_row_a_prompt(make_policy, sampling):
    policy, task = make_policy("tiny-gpt2"), task_of(length)
    engine = LocalEngine(max_rows=2, cache_gib=0.1, kernels="auto")
    engine.load(policy, version=0)
    prompts = [policy.encode(prompt) for prompt in task.eval_prompts]
    with Scorer(task.terms, timeout_s=10, isolation="none") as scorer:
        setting = sampling(0.0, max_new_tokens=5)
        found = measure(engine, prompts, scorer, metric=task.metric_name, sampling=setting, seed=0)
    expected = greedy_lengths(policy, 5)
    assert list(found.values) == [prompt.id for prompt in prompts]
    assert list(found.values.values()) == expected
    assert found.mean == pytest.approx(sum(expected) / 5)
    assert not found.failures


def test_prompts_that_cannot_be_scored_are_counted_not_zero():
    """CHECKS 40: a failed sample leaves the mean, and is counted."""
    found = evaluate("tiny-gpt2", task_of(fails_on_what), max_new_tokens=5)
    whole = evaluate("tiny-gpt2", task_of(length), max_new_tokens=5)
    assert len(found.measurement.values) == 4
    assert sum(found.measurement.failures.values()) == 1
    kept = {k: v for k, v in whole.measurement.values.items() if k in found.measurement.values}
    assert found.measurement.values == kept
    assert found.interval.estimate == pytest.approx(sum(kept.values()) / 4)
    assert found.interval.low <= found.interval.estimate <= found.interval.high


def test_the_seed_decides_a_sampled_evaluation():
    """CHECKS 39: paired over weights, the same for the same seed."""
    arguments = {"temperature": 1.0, "max_new_tokens": 20, "num_prompts": 3}
    texts = [
        [r.text for r in evaluate("tiny-gpt2", task_of(length), seed=seed, **arguments).measurement.rollouts]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 3


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(RewardError, match="none of 5 held-out prompts could be scored: "):
        evaluate("tiny-gpt2", task_of(fails_always), max_new_tokens=3)
    with pytest.raises(DataError, match="task 'lengths' has no held-out prompts to evaluate on"):
        evaluate("tiny-gpt2", Task(prompts=["x"], reward=length, name="lengths"))
    with pytest.raises(RecipeError, match="a task must be named"):
        evaluate("tiny-gpt2")
    with pytest.raises(RecipeError, match="there is no task 'nope'"):
        evaluate("tiny-gpt2", "nope")
