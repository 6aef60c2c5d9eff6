"""A trial: models about to answer one task's held-out prompts alike. What `compare` and `select` have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from upslope.errors import DataError, RecipeError
from upslope.evaluation.answers import Answers
from upslope.evaluation.arms import Arm, EnsembleArm, arm_of, clusters_of, first_recipe, same_actions, shuffled
from upslope.evaluation.critic import Critic
from upslope.evaluation.ensembles import Candidate
from upslope.evaluation.sources import decoding, task_to_evaluate
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.rewards import Scorer
from upslope.tasks import Task
from upslope.tasks.prompts import usable

_OTHER_NUMBERS = 1 << 40
"""Added to the seed of a model that cannot share its random numbers with the first."""


class Asked(TypedDict, total=False):
    """How the models of a `Trial` are asked: the settings that `compare`, `select` and `compare_across` pass on."""

    options: Mapping[str, Any] | None
    metric: str | None
    num_prompts: int | None
    samples: int
    max_new_tokens: int | None
    temperature: float
    kind: str
    cluster: str | None
    seed: int


class Trial:
    """The models loaded, the prompts in the order in which they are asked, and how.

    models: runs, model folders, hub ids, embedded names, or Ensembles of them; kind is that of models that are no runs.
    The task is by default that of the first that is a run, and so are its decoding and reward settings. All answer the
    same prompts, `samples` times each, decoded alike (temperature 0 is greedy); where their actions mean the same they
    share random numbers. metric: the task's own, "reward" or a reward term's name. cluster: a column whose equal values
    hang together (a document); by default a prompt stands for itself, and repeats of one text are one cluster. Clusters
    stand whole in an order that seed decides. All models are held in memory at once.

    Raises: ModelError where a model cannot be loaded, DataError without a prompt that all can read, RecipeError for
    settings at odds.
    """

    def __init__(
        self,
        models: Sequence[Candidate],
        task: Task | str | None,
        *,
        options: Mapping[str, Any] | None = None,
        metric: str | None = None,
        num_prompts: int | None = None,
        samples: int = 1,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        kind: str = "causal",
        cluster: str | None = None,
        seed: int = 0,
    ) -> None:
        if temperature == 0.0 and samples > 1:
            raise RecipeError(f"at temperature 0 all {samples} samples of a prompt are the same; give a temperature")
        recipe = first_recipe(models)
        self.task = task_to_evaluate(recipe, task, options or {})
        self.metric, self.samples, self.kind, self.seed = metric or self.task.metric_name, samples, kind, seed
        self._settings = recipe or Recipe.resolve({})
        self.sampling = decoding(self._settings, temperature=temperature, max_new_tokens=max_new_tokens)
        self.arms = [arm_of(model, kind=kind, labels=self.task.labels, seed=seed) for model in models]
        for index, arm in enumerate(self.arms):
            if not same_actions(self.arms[0], arm):
                arm.seed = seed + index * _OTHER_NUMBERS
        prompts, self._lost = self._readable(num_prompts)
        self.clusters = clusters_of(prompts, cluster)
        self.groups = shuffled(prompts, self.clusters, seed=seed)

    def scorer(self) -> Scorer:
        """The task's reward, to be entered."""
        reward = self._settings.reward
        return Scorer(self.task.terms, timeout_s=reward.timeout_s, isolation=reward.isolation)

    def answers(
        self, scorer: Scorer, arms: Sequence[Arm | EnsembleArm] | None = None, *, critic: Critic | None = None
    ) -> Answers:
        """No answers yet, of these arms (all by default)."""
        return Answers(
            self.arms if arms is None else arms,
            scorer,
            metric=self.metric,
            samples=self.samples,
            sampling=self.sampling,
            clusters=self.clusters,
            critic=critic,
        )

    def notes(self) -> list[str]:
        """What of the task was not asked."""
        return [f"{count} left out: {reason}" for reason, count in (Counter(self.task.skipped) + self._lost).items()]

    def _readable(self, num_prompts: int | None) -> tuple[Sequence[Prompt], Counter[str]]:
        """The first prompts held out that every model can read, and what it lost."""
        prompts: Sequence[Prompt] = self.task.eval_prompts[:num_prompts]
        lost: Counter[str] = Counter()
        for arm in self.arms:
            prompts, found = usable(prompts, arm.encode, strict=self.task.strict)
            lost += found
        if not prompts:
            raise DataError(f"task {self.task.name!r} has no held-out prompts to compare on")
        return prompts, lost


def batches(groups: Sequence[Sequence[Prompt]], size: int | None, *, first: int) -> Iterator[list[Prompt]]:
    """Whole clusters until there are `size` prompts (all where None), in the first batch `first` clusters at least."""
    batch: list[Prompt] = []
    for number, group in enumerate(groups, 1):
        batch += group
        if size is not None and len(batch) >= size and number >= first:
            yield batch
            batch = []
    if batch:
        yield batch
