"""From a recipe to a finished run: builds model, task, engine and run folder, and starts the loop the recipe names."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upslope.engines.local import LocalEngine
from upslope.errors import CheckpointError, DivergenceError, RecipeError
from upslope.policies.loading import load_policy
from upslope.policies.sampling import Sampling
from upslope.recipe import Recipe
from upslope.report.run import Run
from upslope.report.trackers import Tracker, open_trackers
from upslope.rewards import Scorer
from upslope.tasks import Task, load_task, load_terms
from upslope.training import policy_gradient, supervised
from upslope.training.checkpoint import Checkpoint, load_latest
from upslope.training.interrupts import Interrupted, Interrupts
from upslope.training.optimizer import make_optimizer
from upslope.training.session import Session, TrainState

IN_MEMORY = "in-memory"


def train(
    *,
    model: str | Path | None = None,
    task: Task | str | None = None,
    algorithm: str | None = None,
    recipe: Recipe | None = None,
    run: str | Path | None = None,
    trackers: Sequence[str | Tracker] | None = None,
    **settings: Any,
) -> Run:
    """Train a language model on a task; returns the run with its metrics, samples and final model.

    model: folder, hub id or embedded name. task: a Task, or a task's name. algorithm: a preset. run: the new run's
    folder (a dated one under runs/ where not given). trackers: names, and objects with log(step, values) and close();
    TensorBoard where not given. settings: any setting of the recipe by its own name where that is
    unique, such as lr=2e-5, steps=50 or group_size=4, else as "section.name". recipe: a recipe to start from.

        run = upslope.train(model="smollm2-135m-instruct", task=task, algorithm="ppo", steps=50)
        run.metrics["reward"], run.load_model()

    Raises: RecipeError, ModelError, DataError, RewardError before training; DivergenceError and CheckpointError in it;
    KeyboardInterrupt after a Ctrl-C, once the run is saved.
    """
    overrides = dict(settings)
    named = {"model.name": model, "task.name": task, "algorithm.preset": algorithm, "run.folder": run}
    for name, value in named.items():
        if value is not None:
            overrides[name] = IN_MEMORY if isinstance(value, Task) else str(value)
    if trackers is not None:
        overrides["run.trackers"] = [tracker for tracker in trackers if isinstance(tracker, str)]
    resolved = Recipe.resolve(_start(recipe, algorithm), overrides)
    given = task if isinstance(task, Task) else None
    return launch(resolved, task=given, trackers=[t for t in trackers or () if not isinstance(t, str)])


def _start(recipe: Recipe | None, algorithm: str | None) -> dict[str, Any]:
    """What the overrides are laid over; another preset replaces the recipe's algorithm section."""
    if recipe is None:
        return {}
    values = recipe.model_dump()
    if algorithm is not None and algorithm != recipe.algorithm.preset:
        values["algorithm"] = {}
    return values


def resume(
    run: str | Path | Run,
    *,
    task: Task | None = None,
    trackers: Sequence[Tracker] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Continue a run from its newest intact checkpoint, bit for bit as if it had never stopped.

    task is needed where the run was started with a Task object. overrides change settings, more steps for example.
    Raises: CheckpointError when there is no run or no intact checkpoint.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    recipe = Recipe.load(opened.recipe_path, overrides)
    return launch(recipe, task=task, trackers=trackers, resumed=opened)


def launch(
    recipe: Recipe, *, task: Task | None = None, trackers: Sequence[Tracker] = (), resumed: Run | None = None
) -> Run:
    """Build what the recipe names and run its loop to the end; see `train` and `resume`."""
    task = task or _task(recipe)
    task = _with_rewards(task, recipe)
    _check(recipe, task)
    run = resumed or Run.create(recipe.run.folder or _fresh_folder(recipe), recipe.to_toml())
    loop = policy_gradient.train if recipe.method == "policy_gradient" else supervised.train
    with run, ExitStack() as stack:
        checkpoint = _newest_checkpoint(run) if resumed is not None else None
        step = None if checkpoint is None else checkpoint.step
        own = open_trackers(recipe.run.trackers, run.folder, recipe.model_dump(), resume_step=step)
        for tracker in own:
            stack.callback(tracker.close)
        session = _session(recipe, run, task, [*own, *trackers], stack)
        if checkpoint is not None:
            session.restore(checkpoint)
            run.log_resume(checkpoint.step)
        return _guarded(session, loop)


def _guarded(session: Session, loop: Callable[[Session], None]) -> Run:
    try:
        loop(session)
    except DivergenceError:
        session.save()
        raise
    except Interrupted:
        session.save()
        session.run.log("interrupted", step=session.state.step)
        message = f"stopped after step {session.state.step}; continue with: upslope resume {session.run.folder}"
        raise KeyboardInterrupt(message) from None
    session.export()
    return session.run


def _session(recipe: Recipe, run: Run, task: Task, trackers: list[Tracker], stack: ExitStack) -> Session:
    settings = recipe.model
    _seed_everything(recipe.training.seed)
    policy = load_policy(
        settings.name,
        critic=settings.critic if recipe.algorithm.needs_critic and recipe.method == "policy_gradient" else None,
        keep_reference=recipe.algorithm.needs_reference and recipe.method == "policy_gradient",
        dtype=settings.dtype,
        lora=settings.lora.model_dump() if settings.lora else None,
        freeze=settings.freeze,
        gradient_checkpointing=settings.gradient_checkpointing,
        device=settings.device,
        seed=recipe.training.seed,
    )
    scorer = None
    if recipe.method == "policy_gradient" or recipe.evaluation.every_steps:
        reward = recipe.reward
        scorer = stack.enter_context(Scorer(task.terms, timeout_s=reward.timeout_s, isolation=reward.isolation))
    sampling = recipe.sampling
    return Session(
        recipe=recipe,
        run=run,
        policy=policy,
        engine=LocalEngine(max_rows=recipe.engine.max_rows),
        task=task,
        scorer=scorer,
        optimizer=make_optimizer(policy.module, recipe.optimizer),
        sampling=Sampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            stop=sampling.stop,
        ),
        trackers=trackers,
        interrupts=stack.enter_context(Interrupts()),
        state=TrainState(kl_coef=recipe.algorithm.kl_coef),
    )


def _seed_everything(seed: int) -> None:
    """Seed the global generators: dropout and a user's own code draw from them; upslope's own draws do not."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _newest_checkpoint(run: Run) -> Checkpoint:
    checkpoint, problems = load_latest(run.checkpoints_path)
    for problem in problems:
        run.log("damaged_checkpoint", step=0 if checkpoint is None else checkpoint.step, problem=problem)
    if checkpoint is None:
        raise CheckpointError(
            f"{run.folder} has no intact checkpoint to resume from; start it again with `upslope train`"
            + (f" ({problems[0]})" if problems else "")
        )
    return checkpoint


def _task(recipe: Recipe) -> Task:
    if recipe.task.name == IN_MEMORY:
        raise RecipeError("this run's task was a Python object; resume it with upslope.resume(run, task=task)")
    return load_task(recipe.task.name, recipe.task.options)


def _with_rewards(task: Task, recipe: Recipe) -> Task:
    """The task with the recipe's reward functions in place of its own, where the recipe gives any."""
    if not recipe.reward.functions:
        return task
    metric = (
        next(term for term in task.terms if term.name == task.metric_name) if task.metric_name != "reward" else None
    )
    return Task(
        prompts=task.prompts,
        reward=load_terms(recipe.reward.functions),
        metric=metric,
        eval_prompts=task.eval_prompts,
        name=task.name,
        skipped=task.skipped,
    )


def _check(recipe: Recipe, task: Task) -> None:
    if recipe.evaluation.every_steps and not task.eval_prompts:
        raise RecipeError(
            f"evaluation.every_steps is {recipe.evaluation.every_steps}, but task {task.name!r} has no held-out prompts"
        )
    if recipe.model.device != "cpu" and not torch.cuda.is_available():
        raise RecipeError(f"model.device is {recipe.model.device!r}, but torch sees no such device; use 'cpu'")


def _fresh_folder(recipe: Recipe) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = recipe.algorithm.preset if recipe.method == "policy_gradient" else "supervised"
    return Path("runs") / f"{stamp}-{name}-{recipe.task.name.replace(':', '.')}"
