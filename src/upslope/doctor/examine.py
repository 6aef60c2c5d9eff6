"""All checks of a recipe in order; each goes on after others have failed, as far as it can do without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.doctor.findings import Findings
from upslope.doctor.load import Load, in_words, load_of
from upslope.doctor.machine import GIB, available_bytes
from upslope.doctor.memory import examine_memory, forecast, least_bytes, runtime_bytes
from upslope.doctor.step import DryStep, dry_step
from upslope.engines.choice import engine_for
from upslope.engines.engine import Engine
from upslope.engines.local import LocalEngine
from upslope.errors import ModelError
from upslope.policies.causal import CausalPolicy
from upslope.policies.policy import Policy
from upslope.recipe import Recipe
from upslope.report.run import Run
from upslope.tasks import Task, task_of
from upslope.training import alarms
from upslope.training.launch import check_prompts, check_task, policy_of

_ROWS = 32  # of a dry step: enough to see what goes wrong, few enough to wait for
_GRAVE = {"equal_rewards", "dropped_samples", "engine_drift"}
_TOLERANCE = {"exact": 1e-3, "half": 0.5}  # nats: the largest gap between engine and trainer that rounding explains


def examine(findings: Findings, path: Path, overrides: Mapping[str, Any], *, prompts: int | None = None) -> None:
    """Everything about a recipe: its settings, task, model and engine, batch arithmetic, memory, and a dry step.

    prompts: of the dry step; as many as make 32 rows where not given.
    """
    recipe = findings.result("recipe", lambda: _recipe(findings, path, overrides))
    if recipe is None:
        return
    task = findings.result("task", lambda: _task(findings, recipe))
    runtime = findings.result("memory", lambda: runtime_bytes(recipe)) or 0
    policy = findings.result("model", lambda: _policy(findings, recipe, task.labels if task else ()))
    engine = findings.result("engine", lambda: _engine(findings, recipe, policy)) if policy else None
    if task is None or policy is None or engine is None:
        findings.add("dry step", "warning", "batch, forecast and dry step were left out", "mend the errors above first")
        return
    usable = findings.result("batch", lambda: _usable(findings, recipe, policy, task))
    if usable is None:
        return
    fits = findings.result("forecast", lambda: _fits(findings, recipe, policy, engine, usable, runtime))
    if recipe.method == "policy_gradient" and fits:
        few = prompts or min(recipe.training.prompts_per_step, -(-_ROWS // recipe.algorithm.group_size))
        with findings.check("dry step"):
            examine_step(findings, recipe, dry_step(recipe, policy, engine, usable, prompts=few))


def _recipe(findings: Findings, path: Path, overrides: Mapping[str, Any]) -> Recipe:
    recipe = Recipe.load(path, overrides)
    learned = recipe.algorithm.preset if recipe.method == "policy_gradient" else f"the method {recipe.method}"
    findings.add("recipe", "ok", f"{recipe.model.name} learns {recipe.task.name} by {learned}")
    folder = recipe.run.folder
    if folder is not None and Run(folder).recipe_path.exists():
        mend = f"go on with: upslope resume {folder}; or name another run.folder"
        findings.add("recipe", "error", f"run.folder {folder!r} holds a run already", mend)
    return recipe


def _task(findings: Findings, recipe: Recipe) -> Task:
    task = task_of(recipe)
    check_task(recipe, task)
    rewards = ", ".join(f"{term.weight:g} {term.name}" for term in task.terms if term.weight) or "none"
    text = f"{len(task.prompts):,} prompts, {len(task.eval_prompts):,} held out; reward: {rewards}; metric: "
    findings.add("task", "ok", text + task.metric_name, prompts=len(task.prompts), held_out=len(task.eval_prompts))
    for reason, count in task.skipped.items():
        findings.add("task", "warning", f"{count} data lines are left out: {reason}", "mend them, or remove them")
    return task


def _policy(findings: Findings, recipe: Recipe, labels: Sequence[str]) -> Policy:
    """The recipe's model, unless its weights alone are more than there is memory."""
    least, free = least_bytes(recipe), available_bytes()
    if least > free:
        raise ModelError(
            f"the weights of {recipe.model.name} alone take {least / GIB:.1f} GiB, but {free / GIB:.1f} are free; take "
            "a smaller model or a larger machine"
        )
    policy = policy_of(recipe, labels)
    total = sum(parameter.numel() for parameter in policy.module.parameters())
    trained = sum(parameter.numel() for parameter in policy.module.parameters() if parameter.requires_grad)
    text = f"{total / 1e6:,.1f} million weights, {trained / 1e6:,.1f} of them trained; {_scoring(policy)}"
    findings.add("model", "ok", text, weights=total, trained=trained)
    return policy


def _scoring(policy: Policy) -> str:
    """How a policy scores."""
    if not policy.backend:
        return f"a {type(policy).__name__}"
    return "scoring: " + ", ".join(f"{part} {way}" for part, way in policy.backend.items())


def _engine(findings: Findings, recipe: Recipe, policy: Policy) -> Engine:
    engine = engine_for(policy, recipe.engine.model_dump())
    engine.load(policy, version=0)
    text = "; ".join(f"{part} by {way}" for part, way in engine.backend.items())
    slow = isinstance(policy, CausalPolicy) and engine.backend["decoder"].startswith("transformers")
    mend = "an architecture that the decoder knows samples several times faster" if slow else ""
    findings.add("engine", "warning" if slow else "ok", f"sampling: {text}", mend, **engine.backend)
    return engine


def _load(findings: Findings, recipe: Recipe, policy: CausalPolicy, task: Task) -> Load:
    load = load_of(recipe, policy, task)
    findings.add("batch", "ok", in_words(recipe, load, num_prompts=len(task.prompts)), rows=load.rows)
    return load


def _usable(findings: Findings, recipe: Recipe, policy: Policy, task: Task) -> Task:
    """The task's prompts that leave room for their answer; how many do not, and how many are cut."""
    usable, cut = check_prompts(recipe, policy, task)
    if lost := sum(usable.skipped.values()) - sum(task.skipped.values()):
        mend = "shorten them, or remove them"
        findings.add("batch", "warning", f"{lost} prompts are left out, which the model cannot read or write", mend)
    if cut:
        mend = "raise model.max_length where the model can read more"
        findings.add("batch", "warning", f"{cut} texts are longer than what is read: their ends are cut", mend)
    return usable


def _fits(findings: Findings, recipe: Recipe, policy: Policy, engine: Engine, task: Task, runtime: int) -> bool:
    """The batch in words, and whether its memory is there, as far as that is known."""
    if not (isinstance(policy, CausalPolicy) and isinstance(engine, LocalEngine)):
        findings.add("forecast", "warning", f"memory is forecast for causal models, not for a {type(policy).__name__}")
        return True
    load = findings.result("batch", lambda: _load(findings, recipe, policy, task))
    if load is None:
        return False
    if recipe.model.device != "cpu":
        findings.add("forecast", "warning", f"memory on {recipe.model.device!r} is not forecast, only that of a CPU")
        return True
    found = forecast(recipe, policy, engine, load, runtime=runtime)
    examine_memory(findings, found)
    return found.total <= available_bytes()


def examine_step(findings: Findings, recipe: Recipe, step: DryStep) -> None:
    """What a dry step shows: whether it could be taken, engine against trainer, and the pathologies of training."""
    metrics = step.metrics
    if not step.rollouts or metrics.get("skipped"):
        mend = "mend the reward function; its first failure stands in the log above"
        findings.add("dry step", "error", f"the step could not be taken: {metrics.get('problem')}", mend, **metrics)
        return
    text = (
        f"{metrics['samples']} rows, reward {metrics['reward']:.3f} +- {metrics['reward_std']:.3f}, "
        f"{metrics['length']:.1f} tokens a row, {metrics['terminated']:.0%} ended by themselves; "
        f"{metrics['step_s']:.1f} s, {metrics['reward_s']:.2f} of them in the reward; the weights are as they were"
    )
    findings.add("dry step", "ok", text, **metrics)
    _examine_gap(findings, recipe, step)
    for alarm in alarms.check(metrics):
        says, _, mend = alarm.text.partition("; ")
        findings.add(alarm.name, "error" if alarm.name in _GRAVE else "warning", says, mend, value=alarm.value)


def _examine_gap(findings: Findings, recipe: Recipe, step: DryStep) -> None:
    """Sampled against rescored log-probabilities of the same tokens."""
    gap = step.gap.abs()
    largest, mean = float(gap.max()), float(gap.mean())
    half = recipe.engine.kernels == "float16" or recipe.model.dtype == "bfloat16"
    tolerance = _TOLERANCE["half" if half else "exact"]
    text = f"engine and trainer differ by {largest:.1e} nats at most, {mean:.1e} on average, over {len(gap):,} tokens"
    if largest <= tolerance:
        findings.add("parity", "ok", text, largest=largest, mean=mean)
    else:
        mend = "set engine.kernels = 'torch'; if that mends it, the kernels are at fault: please report it"
        findings.add("parity", "error", f"{text}: more than rounding ({tolerance:g})", mend, largest=largest, mean=mean)
