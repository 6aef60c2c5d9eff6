"""From a recipe to a finished run: builds model, task, engine and run folder, and starts the loop the recipe names."""

from __future__ import annotations

import dataclasses
import datetime
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upslope.engines.choice import engine_for
from upslope.errors import CheckpointError, DataError, RecipeError, UpslopeError
from upslope.evaluation.sources import sampling_of
from upslope.kernels import gemm
from upslope.kernels.memory import freed_memory_kept
from upslope.policies.loading import load_policy
from upslope.policies.policy import Policy
from upslope.policies.reward import LABELS
from upslope.recipe import Recipe
from upslope.records import Prompt
from upslope.report.run import Run
from upslope.report.trackers import Tracker, check_trackers, open_trackers
from upslope.rewards import Scorer
from upslope.tasks import Task, task_of
from upslope.tasks.loading import IN_MEMORY
from upslope.tasks.prompts import usable
from upslope.training.adversarial import attach_discriminator
from upslope.training.checkpoint import Checkpoint, load_latest
from upslope.training.interrupts import Interrupted, Interrupts
from upslope.training.memory import refusals_named
from upslope.training.methods import by_policy_gradient, given_check, loop_of, measured_by, needs_reference, samples
from upslope.training.optimizer import make_optimizer
from upslope.training.session import Session, TrainState


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

    Raises: RecipeError, ModelError, DataError, RewardError before training; DivergenceError, CheckpointError and
    OutOfMemoryError in it; KeyboardInterrupt after a Ctrl-C, once the run is saved.
    """
    overrides = dict(settings)
    named = {"model.name": model, "task.name": task, "algorithm.preset": algorithm, "run.folder": run}
    for name, value in named.items():
        if value is not None:
            overrides[name] = IN_MEMORY if isinstance(value, Task) else str(value)
    if trackers is not None:
        overrides["run.trackers"] = [tracker for tracker in trackers if isinstance(tracker, str)]
    if model is not None and not isinstance(model, str | Path):
        raise RecipeError(f"model is a {type(model).__name__}, but must be a folder, a hub id or an embedded name")
    resolved = Recipe.resolve({} if recipe is None else recipe.model_dump(), overrides)
    given = task if isinstance(task, Task) else None
    return launch(resolved, task=given, trackers=[t for t in trackers or () if not isinstance(t, str)])


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
    if any(name.split(".")[-1] == "folder" for name in overrides or {}):
        raise RecipeError("run.folder cannot change when a run is resumed; move the folder and name its new place")
    recipe = Recipe.load(opened.recipe_path, overrides)
    return launch(recipe, task=task, trackers=trackers, resumed=opened)


@refusals_named()
def launch(
    recipe: Recipe, *, task: Task | None = None, trackers: Sequence[Tracker] = (), resumed: Run | None = None
) -> Run:
    """Build what the recipe names and run its loop to the end; see `train` and `resume`."""
    check_trackers(recipe.run.trackers)
    task = task_of(recipe, task)
    check_task(recipe, task)
    _seed_everything(recipe.training.seed)
    policy = policy_of(recipe, task.labels)
    discriminator = attach_discriminator(recipe, policy)
    task, cut = check_prompts(recipe, policy, task)
    optimizer = make_optimizer(policy.module, recipe.optimizer)
    run = resumed or Run.create(recipe.run.folder or _fresh_folder(recipe, task), recipe.to_toml())
    with run, freed_memory_kept(), ExitStack() as stack:
        checkpoint = _newest_checkpoint(run) if resumed is not None else None
        step = None if checkpoint is None else checkpoint.step
        opened = open_trackers(recipe.run.trackers, run, recipe.model_dump(), own=trackers, resume_step=step)
        stack.callback(opened.close)
        session = Session(
            recipe=recipe,
            run=run,
            policy=policy,
            engine=engine_for(policy, recipe.engine.model_dump()),
            task=task,
            scorer=_scorer(recipe, task, stack),
            optimizer=optimizer,
            sampling=sampling_of(recipe),
            trackers=[opened],
            interrupts=stack.enter_context(Interrupts()),
            state=TrainState(kl_coef=recipe.algorithm.kl_coef),
            measured_by=measured_by(recipe, task),
            discriminator=discriminator,
        )
        if resumed is not None:
            _continue(session, checkpoint)
        _log_start(session, cut)
        return _guarded(session, loop_of(recipe))


def _continue(session: Session, checkpoint: Checkpoint | None) -> None:
    """Take up a run at its checkpoint, or at its start where it ended before the first one."""
    if checkpoint is not None:
        session.restore(checkpoint)
    recipe_toml = session.recipe.to_toml()
    if recipe_toml != session.run.recipe_toml:
        session.run.write_recipe(recipe_toml)
        session.run.log("settings", step=session.state.step, recipe=recipe_toml)
    session.run.log_resume(session.state.step if checkpoint is not None else -1)


def _log_start(session: Session, cut: int) -> None:
    """Say in the log what computes the run, which lines of its data it does without, and how many texts are cut."""
    step = session.state.step
    session.run.log("kernels", step=step, **_kernels(session))
    if session.task.skipped:
        session.run.log("skipped_lines", step=step, lines=dict(session.task.skipped))
    if cut:
        session.run.log("cut_prompts", step=step, prompts=cut)
        warnings.warn(f"{cut} prompts exceed what the model reads (model.max_length): their ends are cut", stacklevel=2)


def _guarded(session: Session, loop: Callable[[Session], None]) -> Run:
    """Run the loop; an interrupt or an error of upslope's own leaves a checkpoint of the last whole step."""
    try:
        loop(session)
    except CheckpointError:
        raise
    except UpslopeError:
        session.save()
        raise
    except Interrupted:
        session.save()
        session.run.log("interrupted", step=session.state.step)
        message = f"stopped after step {session.state.step}; continue with: upslope resume {session.run.folder}"
        raise KeyboardInterrupt(message) from None
    session.export()
    return session.run


def policy_of(recipe: Recipe, labels: Sequence[str] = ()) -> Policy:
    """The policy a recipe names, with the critic and the reference that its method needs, for a task's labels."""
    settings, learns = recipe.model, by_policy_gradient(recipe)
    scores = recipe.method == "reward_model"
    return load_policy(
        settings.name,
        kind="reward" if scores else settings.kind,
        labels=LABELS if scores else labels,
        max_length=settings.max_length,
        mark_case=settings.mark_case,
        critic=settings.critic if recipe.algorithm.needs_critic and learns else None,
        keep_reference=needs_reference(recipe),
        dtype=settings.dtype,
        lora=settings.lora.model_dump() if settings.lora else None,
        freeze=settings.freeze,
        gradient_checkpointing=settings.gradient_checkpointing,
        device=settings.device,
        seed=recipe.training.seed,
    )


def _kernels(session: Session) -> dict[str, str]:
    """What computes the run, of the ways there are: the engine's decoder and linear layers, and the update's parts."""
    model = session.recipe.model
    fast = model.device == "cpu" and model.dtype == "float32"
    update = {f"update_{part}": way for part, way in session.policy.backend.items()}
    return {**session.engine.backend, "update": gemm.backend() if fast else "torch", **update}


def _scorer(recipe: Recipe, task: Task, stack: ExitStack) -> Scorer | None:
    """The reward functions' worker, where what the policy writes is rewarded or evaluated."""
    online = recipe.method == "preference" and recipe.preference.pairs == "online"
    evaluated = recipe.evaluation.every_steps is not None and measured_by(recipe, task) is None
    if not (recipe.method == "policy_gradient" or online or evaluated):
        return None
    reward = recipe.reward
    return stack.enter_context(Scorer(task.terms, timeout_s=reward.timeout_s, isolation=reward.isolation))


def _seed_everything(seed: int) -> None:
    """Seed the global generators: dropout and a user's own code draw from them; upslope's own draws do not."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _newest_checkpoint(run: Run) -> Checkpoint | None:
    """The checkpoint to resume from, None where the run ended before its first.

    Raises: CheckpointError when checkpoints are there but none is intact, or when a finished run kept none.
    """
    checkpoint, problems = load_latest(run.checkpoints_path)
    for problem in problems:
        run.log("damaged_checkpoint", step=0 if checkpoint is None else checkpoint.step, problem=problem)
    if checkpoint is None and problems:
        raise CheckpointError(f"{run.folder} has no intact checkpoint to resume from: {problems[0]}")
    if checkpoint is None and run.model_path.exists():
        raise CheckpointError(f"{run.folder} is finished and kept no checkpoint, so there is nothing to resume")
    return checkpoint


def check_prompts(recipe: Recipe, policy: Policy, task: Task) -> tuple[Task, int]:
    """The task with the prompts that the policy can read and has room to answer, and how many of them lose their end by
    being encoded: found out before a run begins, not when a prompt is drawn.

    Raises: DataError naming the prompt, unless the task is not strict: it is then left out and counted in `skipped`.
    """
    given = given_check(recipe, policy)

    def answerable(prompt: Prompt) -> None:
        encoded = policy.encode(prompt)
        room, wanted = policy.room(encoded), recipe.sampling.max_new_tokens
        if room is not None and wanted > room:
            raise DataError(
                f"{prompt.name} has {len(encoded.tokens)} tokens, after which the model's context has room for "
                f"{max(0, room)}, but sampling.max_new_tokens = {wanted}; shorten it, or leave it out"
            )

    def learnable(prompt: Prompt) -> None:
        given(prompt)
        if samples(recipe):
            answerable(prompt)

    prompts, lost = usable(task.prompts, learnable, strict=task.strict)
    held_out, more = list(task.eval_prompts), Counter[str]()
    if recipe.evaluation.every_steps and measured_by(recipe, task) is None:
        held_out, more = usable(held_out, answerable, strict=task.strict)
    if lost or more:
        skipped = Counter(task.skipped) + lost + more
        task = dataclasses.replace(task, prompts=prompts, eval_prompts=held_out, skipped=skipped)
    return task, sum(policy.cuts(prompt) for prompt in (*prompts, *held_out))


def check_task(recipe: Recipe, task: Task) -> None:
    """Whether task and device are there as the recipe asks. Raises: RecipeError."""
    if recipe.evaluation.every_steps and not task.eval_prompts:
        raise RecipeError(
            f"evaluation.every_steps is {recipe.evaluation.every_steps}, but task {task.name!r} has no held-out prompts"
        )
    if recipe.model.device != "cpu" and not torch.cuda.is_available():
        raise RecipeError(f"model.device is {recipe.model.device!r}, but torch sees no such device; use 'cpu'")


def _fresh_folder(recipe: Recipe, task: Task) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = recipe.algorithm.preset if recipe.method == "policy_gradient" else recipe.method
    safe_name = re.sub(r"[^\w.-]+", "-", task.name)
    return Path("runs") / f"{stamp}-{name}-{safe_name}"
