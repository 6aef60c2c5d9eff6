"""The choice among several models: who is dropped, who is kept, and what the winner is then worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError, RecipeError
from upslope.evaluation.across import combined, compare_across
from upslope.evaluation.clustered import clustered_mean
from upslope.evaluation.cross_validation import cross_validate
from upslope.evaluation.paired import Pairs
from upslope.evaluation.select import Race, select
from upslope.tasks import Task


def rewards():
    """Functions within a function travel to the reward worker as they are: it need not import this module or torch."""

    def checksum(completion):
        return sum(map(ord, completion)) % 11 / 10

    return checksum


checksum = rewards()


@dataclass
class Drawn:
    """Answers of models whose means are known: half of their luck is common to all."""

    means: tuple[float, ...]
    seed: int
    rewards: list[list[list[float]]] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.arms = [SimpleNamespace(name=str(i)) for i in range(len(self.means))]
        self.rewards = [[] for _ in self.means]
        self._generator = np.random.default_rng(self.seed)

    def answer(self, prompts, arms):
        shared = self._generator.random(len(prompts))
        for arm in range(len(self.means)):
            own = np.where(self._generator.random(len(prompts)) < 0.5, shared, self._generator.random(len(prompts)))
            if arm in arms:
                self.rewards[arm] += [[float(u < self.means[arm])] for u in own]
        self.prompts += prompts

    @property
    def num_clusters(self):
        return len(self.prompts)

    def pairs(self, a, b):
        return Pairs(np.array(self.rewards[a]), np.array(self.rewards[b]))


def raced(means, seed, *, margin=None, looks=20):
    race = Race(Drawn(means, seed), confidence=0.95, margin=margin, tuned_for=1_000)
    for _ in range(looks):
        race.look(list(range(50)))
        if race.over:
            break
    return race


def test_the_best_model_stays_and_the_others_go():
    """60 races of four models: the best is dropped in 5% at most (here hardly ever), the far ones are gone early."""
    races = [raced((0.35, 0.6, 0.55, 0.2), seed) for seed in range(60)]
    assert np.mean([1 in race.left for race in races]) >= 0.95
    assert np.mean([race.leader == 1 for race in races]) >= 0.9
    assert not any(3 in race.left for race in races)
    entrants = [race.entrants() for race in races]
    assert np.mean([e[3].out_after for e in entrants]) < np.mean([e[0].out_after for e in entrants]) < 500
    assert all(e[3].num_prompts == e[3].out_after for e in entrants), "who is out answers no more"


def test_equal_models_are_tied_within_a_margin():
    race = raced((0.5, 0.5, 0.1), 3, margin=0.15)
    assert sorted(race.left) == [0, 1]
    assert race.over
    assert len(race.answers.prompts) < 1_000


def test_models_are_chosen_on_a_task_and_estimated_on_other_prompts(make_policy, tmp_path):
    """Against the means of every model computed apart, and a figure from untouched prompts alone."""
    from upslope.evaluation.evaluate import evaluate

    for seed in range(3):
        make_policy("tiny-llama", seed=seed).save(tmp_path / str(seed))
    task = Task(prompts=["x"], eval_prompts=[f"prompt {i}" for i in range(80)], reward=checksum)
    models = [tmp_path / str(seed) for seed in range(3)]
    settings = {"temperature": 1.0, "max_new_tokens": 4}
    found = select(models, task, look_every=30, fresh=0.2, **settings)
    assert found.num_fresh_prompts == 16
    assert found.winner == found.tied[0]
    raced_on = {entrant.name: entrant for entrant in found.entrants}
    whole = {str(model): evaluate(model, task, **settings).measurement.values for model in models}
    own = raced_on[found.winner]
    total = own.mean * own.num_prompts + found.estimate.estimate * 16
    assert own.num_prompts == 64
    assert total == pytest.approx(sum(whole[found.winner].values())), "race and estimate share no prompt and miss none"
    assert found.num_samples == 16 + sum(entrant.num_prompts for entrant in found.entrants)


def test_a_winner_that_is_always_right_is_not_surely_so(make_policy, tmp_path):
    """All 10 untouched prompts right: the interval is [.., 1], near Wilson's; and a constant reward is named."""

    def constant(completion):
        return 1.0

    for seed in range(2):
        make_policy("tiny-llama", seed=seed).save(tmp_path / str(seed))
    task = Task(prompts=["x"], eval_prompts=[f"prompt {i}" for i in range(40)], reward=constant)
    found = select([tmp_path / str(seed) for seed in range(2)], task, max_new_tokens=2)
    assert found.estimate.high == 1.0
    assert found.estimate.low == pytest.approx(stats.binomtest(10, 10).proportion_ci(method="wilson").low, abs=0.05)
    assert any("the reward is constant" in note for note in found.notes)
    assert found.entrants[1].behind.low == -math.inf
    assert found.as_dict()["entrants"][1]["behind"]["low"] is None


def test_a_choice_that_cannot_be_made_is_refused():
    task = Task(prompts=["x"], eval_prompts=[f"prompt {i}" for i in range(20)], reward=checksum)
    with pytest.raises(RecipeError, match="two models at least"):
        select(["tiny-llama"], task)
    with pytest.raises(DataError, match="20 prompts are too few"):
        select(["tiny-llama", "tiny-gpt2"], task)


def test_the_macro_difference_covers():
    """1,000 repetitions of three equal tasks of unlike noise and few prompts: the mean difference holds 0 in 95%."""
    generator = np.random.default_rng(0)
    tasks = [clustered_mean(generator.normal(0, s, size=(1_000, n))) for s, n in ((1.0, 8), (0.3, 5), (2.0, 12))]
    covered = []
    for row in range(1_000):
        found = [SimpleNamespace(estimate=t.estimate[row], se=t.se[row], df=t.df, non_inferiority=0.5) for t in tasks]
        worse, macro = combined(found, confidence=0.95)
        covered.append(macro.low <= 0 <= macro.high)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert worse == (1.0, 1.0, 1.0)


def test_across_tasks(make_policy):
    """The macro difference is the mean of the tasks', and worse by Holm where one task is."""
    tasks = [
        Task(prompts=["x"], eval_prompts=[f"{name} {i}" for i in range(12)], reward=checksum, name=name)
        for name in "pq"
    ]
    found = compare_across("tiny-llama", "tiny-gpt2", tasks, margin=5.0, temperature=1.0, max_new_tokens=3)
    estimates = [each.estimate for each in found.comparisons]
    assert found.macro.estimate == pytest.approx(sum(estimates) / 2)
    assert found.nowhere_worse
    assert [each.task for each in found.comparisons] == ["p", "q"]
    p = sorted(each.difference.non_inferiority for each in found.comparisons)
    assert sorted(found.worse) == pytest.approx([2 * p[0], max(2 * p[0], p[1])])
    with pytest.raises(DataError, match="there is no task"):
        compare_across("tiny-llama", "tiny-gpt2", [], margin=0.1)


def test_cross_validation_takes_the_optimism_out():
    """Twenty equal models, 60 prompts: the best one's own mean is far too high, the cross-validated one is not."""
    generator = np.random.default_rng(0)
    found = [cross_validate(generator.normal(0.0, 1.0, size=(20, 60)), seed=s) for s in range(200)]
    estimates = np.array([each.estimate.estimate for each in found])
    naive = np.mean([each.naive for each in found])
    assert naive > 1.5 / math.sqrt(60)
    assert abs(estimates.mean()) <= 3 * estimates.std() / math.sqrt(200)
    assert np.mean([each.estimate.low <= 0 <= each.estimate.high for each in found]) >= 0.9


def test_cross_validation_keeps_clusters_whole():
    """A model that is right on one document alone is never estimated on it by folds that saw it."""
    clusters = np.repeat(np.arange(6), 4)
    rewards = np.zeros((2, 24))
    rewards[0], rewards[1, clusters == 2] = 0.1, 1.0
    found = cross_validate(rewards, clusters, num_folds=6)
    assert found.naive == pytest.approx(1 / 6)
    assert found.choices == (1, 5)
    assert found.estimate.estimate == pytest.approx(0.1 * 4 / 24)
    with pytest.raises(DataError, match="there are 6"):
        cross_validate(rewards, clusters, num_folds=7)
