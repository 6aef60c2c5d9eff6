"""The load of a step against what real steps cut and compute."""

import pytest

from upslope.doctor.load import in_words, load_of
from upslope.recipe import Recipe
from upslope.tasks import Task
from upslope.training.launch import launch, policy_of
from upslope.training.update import pieces

PROMPTS = [f"{'count ' * (i % 5)}{i}" for i in range(30)]


def recipe_of(**settings):
    small = {"model.name": "tiny-llama", "prompts_per_step": 6, "group_size": 3, "max_new_tokens": 9, "steps": 5}
    return Recipe.resolve({"algorithm": {"preset": "ppo"}}, {**small, **settings})


def task_of(prompts=tuple(PROMPTS), **more):
    return Task(prompts=list(prompts), reward=lambda completion: float(len(completion)), **more)


@pytest.mark.parametrize("settings", [{}, {"minibatches": 2}, {"micro_batch_tokens": 64}, {"model.name": "tiny-gpt2"}])
def test_the_load_is_that_of_a_first_step_whose_rows_all_run_to_the_end(settings, tmp_path, monkeypatch):
    """Against the micro-batches of the first optimiser step of a real run of a model that never ends a row."""
    seen = []

    def watched(policy, batch, *, max_tokens, whole=False):
        cut = list(pieces(policy, batch, max_tokens=max_tokens, whole=whole))
        seen.append([(policy.computed_tokens(piece), len(piece.actions)) for _, _, piece in cut])
        return iter(cut)

    monkeypatch.setattr("upslope.training.update.pieces", watched)
    monkeypatch.setattr("upslope.policies.causal.CausalPolicy.eos_ids", frozenset())
    settings = {**settings, "epochs": 2, "steps": 1, "isolation": "none", "folder": str(tmp_path / "run")}
    recipe, task = recipe_of(**settings), task_of()
    launch(recipe, task=task)
    load = load_of(recipe, policy_of(recipe), task)
    assert load.rows == 18
    assert load.micro_batches == max(map(len, seen))
    assert (load.largest.tokens, load.largest.actions) in {piece for step in seen for piece in step}
    assert load.largest.tokens == max(tokens for step in seen for tokens, _ in step)
    assert load.step_tokens == max(sum(tokens for tokens, _ in step) for step in seen)


def test_demonstrations_are_taken_as_they_are():
    recipe = recipe_of(prompts_per_step=4).model_copy(update={"method": "supervised"})
    task = task_of([{"prompt": "ab", "completion": "cdef"}] * 4)
    load = load_of(recipe, policy_of(recipe), task)
    assert (load.rows, load.largest.actions) == (4, 4 * 5)  # four letters and the end of the row


def test_the_words_hold_the_arithmetic():
    recipe, task = recipe_of(epochs=4, minibatches=2), task_of()
    words = in_words(recipe, load_of(recipe, policy_of(recipe), task), num_prompts=30)
    assert "6 prompts x 3 samples = 18 rows a step; 4 epochs x 2 minibatches = 8 optimiser steps, each of" in words
    assert "1 micro-batch of at most 1,024 tokens" in words
    assert words.endswith("5 steps = 40 optimiser steps, 1 passes over the data, 90 rows, at most 810 sampled tokens")
