"""Optuna: the study in a file of SQLite, its samplers and ours, and what its trials say about importance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import CheckpointError, DependencyError, RecipeError
from upslope.tuning.space import Choice, Parameter, Range, Space, drawn
from upslope.tuning.tree import Tried, propose

SAMPLERS = ("tree", "tpe", "gp", "random")
_PATIENCE_S = 120
"""How long a worker waits for others to let go of the file."""


@contextmanager
def stored(path: Path) -> Iterator[None]:
    """Work with a study. Raises: CheckpointError where its file cannot be read or written."""
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise CheckpointError(f"cannot use {path}: {reason}; make it readable and writable, and make room") from error


def open_study(path: Path) -> Any:
    """The study of a file, made where it is not there.

    Raises: DependencyError without Optuna; CheckpointError where the file is no study, or cannot be written.
    """
    try:
        import optuna
    except ImportError as error:
        raise DependencyError("optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path.absolute()}", engine_kwargs={"connect_args": {"timeout": _PATIENCE_S}}
        )
        return optuna.create_study(storage=storage, study_name="upslope", direction="maximize", load_if_exists=True)
    except Exception as error:  # SQLAlchemy's, Alembic's and SQLite's own: all mean that the file is of no use
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"cannot open {path} as a study: {reason}; name another folder") from error


def make_sampler(name: str, space: Space, *, seed: int) -> Any:
    """What proposes the settings of one trial: "tree" (ours), "tpe", "gp" or "random" (Optuna's).

    Raises: RecipeError for another name; DependencyError where "gp" lacks SciPy.
    """
    import optuna

    if name == "tree":
        return _tree_sampler(space, seed)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if name == "gp":
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise DependencyError("scipy", "tune") from error
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise RecipeError(f"there is no sampler {name!r}; it is one of {', '.join(SAMPLERS)}")


def suggest(trial: Any, parameter: Parameter) -> Any:
    """The value that the study's sampler gives a parameter, or gave it before."""
    domain = parameter.domain
    if isinstance(domain, Choice):
        label = trial.suggest_categorical(parameter.name, domain.labels)
        return domain.values[domain.labels.index(label)]
    suggested = trial.suggest_int if domain.whole else trial.suggest_float
    return suggested(parameter.name, domain.low, domain.high, log=domain.log)


def reopened(study: Any, number: int) -> Any:
    """A trial that was begun before, to go on with."""
    import optuna

    (frozen,) = (trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    return optuna.trial.Trial(study, frozen._trial_id)


def tell(study: Any, number: int, state: str, metric: float | None) -> None:
    """End a trial: "COMPLETE" with its metric, "PRUNED" or "FAIL"."""
    import optuna

    study.tell(number, metric, state=optuna.trial.TrialState[state])


def settings_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from what a study keeps of a trial: labels are values again."""
    domains = {parameter.name: parameter.domain for parameter in space.parameters}
    return {name: _value(domains[name], kept) for name, kept in params.items()}


def importance(study: Any, space: Space) -> dict[str, float]:
    """Shares of the parameters in what sets the best tenth of the trials apart, largest first; {} of too few trials.

    A conditional parameter is judged by the trials that have it.
    Source: Watanabe, Bansal & Hutter 2023, arXiv:2304.10255 (PED-ANOVA).
    """
    import optuna

    found: dict[str, float] = {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    for parameter in space.parameters:
        trials = [t for t in study.trials if t.state.name == "COMPLETE" and parameter.name in t.params]
        if len({trial.params[parameter.name] for trial in trials}) > 1 and len(trials) >= 5:
            found |= evaluator.evaluate(study, params=[parameter.name])
    total = sum(found.values())
    shares = {name: value / total for name, value in found.items()} if total else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


# ruff: noqa: ARG002 - the arguments are Optuna's
def _tree_sampler(space: Space, seed: int) -> Any:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    class TreeSampler(BaseSampler):
        """`tree.propose` for Optuna. What it draws is decided by seed, the trial's number, and the trials before it."""

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return {parameter.name: _distribution(parameter.domain) for parameter in space.parameters}

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            sign = 1.0 if study.direction.name == "MAXIMIZE" else -1.0
            others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
            tried = [_tried(space, other, sign) for other in others if other.state.name != "FAIL" and other.params]
            values = propose(space, tried, np.random.default_rng([seed, trial.number]))
            domains = {parameter.name: parameter.domain for parameter in space.parameters}
            return {name: _kept(domains[name], value) for name, value in values.items()}

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            """Of a trial that was begun under another choice, before its process died."""
            (domain,) = (parameter.domain for parameter in space.parameters if parameter.name == param_name)
            return _kept(domain, drawn(domain, np.random.default_rng([seed, trial.number])))

    return TreeSampler()


def _tried(space: Space, trial: Any, sign: float) -> Tried:
    """A pruned trial counts by the last value that it had."""
    reward = trial.value if trial.state.name == "COMPLETE" else None
    if trial.state.name == "PRUNED" and trial.intermediate_values:
        reward = trial.intermediate_values[max(trial.intermediate_values)]
    return Tried(settings_of(space, trial.params), None if reward is None else sign * reward)


def _distribution(domain: Range | Choice) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.labels)
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _kept(domain: Range | Choice, value: Any) -> Any:
    return domain.labels[domain.values.index(value)] if isinstance(domain, Choice) else value


def _value(domain: Range | Choice, kept: Any) -> Any:
    return domain.values[domain.labels.index(kept)] if isinstance(domain, Choice) else kept
