"""A learned reward as a reward function: its scores, ensembles, and what it cannot read."""

from __future__ import annotations

import statistics

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from upslope.errors import ModelError, RecipeError, RewardError
from upslope.policies.loading import load_policy
from upslope.recipe import Recipe
from upslope.records import Prompt, collate
from upslope.rewards import RewardTerm, Scorer, reward_model
from upslope.tasks import load_terms

CASES = [("once upon", " a time"), ((({"role": "user", "content": "2 + 2?"}),), "4"), ("x", "y")]


def made(folder, seed, name="tiny-bert"):
    policy = load_policy(
        name, kind="reward", labels=("reward",), critic=None, keep_reference=False, dtype="float32", lora=None,
        freeze=(), gradient_checkpointing=False, device="cpu", seed=seed,
    )  # fmt: skip
    policy.save(folder)
    rows = [policy.demonstration(Prompt(i, content), text) for i, (content, text) in enumerate(CASES)]
    with torch.no_grad():
        return policy.scores(collate(rows)[0]).tolist()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Folders of three random reward models, one of them a decoder, and their scores of the cases."""
    root = tmp_path_factory.mktemp("models")
    names = ("tiny-bert", "tiny-bert", "tiny-llama")
    return {str(root / str(seed)): made(root / str(seed), seed, name) for seed, name in enumerate(names)}


def rows_of(rollout):
    return [rollout(text, content=content) for content, text in CASES]


def test_as_a_term_in_the_worker_by_the_name_of_its_run(ensemble, rollout, tmp_path):
    """`model:RUN` loads the run's model folder, in the worker, and scores the text of the policy's rows."""
    folder, scores = next(iter(ensemble.items()))
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(Recipe().to_toml())
    with pytest.raises(ModelError, match="has no final model yet"):
        load_terms(f"model:{run}")
    (run / "model").symlink_to(folder)
    (term,) = load_terms([{"function": f"model:{run}", "weight": 0.5, "max_tokens": 8}])
    with Scorer([term], timeout_s=60.0) as scorer:
        scored = scorer.score(rows_of(rollout))
    assert [row.metrics["reward_model"] for row in scored] == pytest.approx(scores, abs=1e-5)
    assert [row.score for row in scored] == pytest.approx([score / 2 for score in scores], abs=1e-5)


def test_an_ensemble_pays_its_lower_confidence_bound_and_logs_its_spread(ensemble, rollout):
    (term,) = load_terms([{"function": "reward_model", "model": list(ensemble), "pessimism": 1.5}])
    with Scorer([term], timeout_s=60.0, isolation="none") as scorer:
        scored = scorer.score(rows_of(rollout))
    for row, each in zip(scored, zip(*ensemble.values(), strict=True), strict=True):
        spread = statistics.stdev(each)
        assert row.score == pytest.approx(statistics.fmean(each) - 1.5 * spread, abs=1e-5)
        assert row.metrics["reward_model_std"] == pytest.approx(spread, abs=1e-5)


def test_a_model_of_other_tokens_than_the_policys_reads_the_text(data_folder, rollout, tmp_path):
    """Against plain Transformers with the reward model's own tokenizer; the rows' ids are those of another one."""
    made(tmp_path, 0, str(data_folder / "models" / "stories260k"))
    row = rollout(" a time there was a dog.", content="once upon")
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tmp_path),
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
    )
    ids = [*tokenizer(row.prompt.text + row.text)["input_ids"], tokenizer.eos_token_id]
    assert ids[-len(row.actions) :] != list(row.actions)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, 0]
    with Scorer([RewardTerm(reward_model(str(tmp_path)))], timeout_s=60.0, isolation="none") as scorer:
        (scored,) = scorer.score([row])
    assert scored.score == pytest.approx(float(expected), abs=1e-5)


def test_a_row_that_is_too_long_is_dropped_and_counted(ensemble, rollout):
    with Scorer([RewardTerm(reward_model(next(iter(ensemble))))], timeout_s=60.0, isolation="none") as scorer:
        rows = scorer.score([rollout("a"), rollout("a" * 5000)])
    assert [row.failure for row in rows] == [None, "reward_model: returned nan"]


def test_pessimism_needs_an_ensemble(ensemble):
    with pytest.raises(RewardError, match="one reward model has no spread"):
        reward_model(next(iter(ensemble)), pessimism=1.0)
    with pytest.raises(RewardError, match="is given no model"):
        reward_model([])


def test_a_recipe_may_name_its_one_reward_in_short():
    assert Recipe.resolve({"reward": "model:runs/rm"}).reward.functions == ("model:runs/rm",)
    assert Recipe.resolve({}, {"reward": "model:runs/rm"}).reward.timeout_s == 30.0
    with pytest.raises(RecipeError, match="'reward_model' has no option 'weigth'"):
        load_terms([{"function": "model:runs/rm", "weigth": 2.0}])
