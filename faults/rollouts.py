"""Rollouts that degenerate: every number stays finite, and what happens is what docs/faults.md says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import upslope
from faults.nonfinite import check_finite
from faults.processes import ended
from faults.runs import STEPS, check_done, check_refused, start, task
from faults.verdict import Injection, check
from upslope.engines.local import LocalEngine
from upslope.policies.tiny import tiny_model
from upslope.records import Rollout
from upslope.report.run import Run
from upslope.training.checkpoint import checkpoint_path, load_checkpoint

_GROUPED: dict[str, Any] = {"algorithm": "grpo", "kl": "off", "kl_coef": 0.0, "kl_target": "none", "group_size": 2}
CASES = (
    "ppo: only EOS", "ppo: none ends", "ppo: none ends, bootstrapped", "ppo: equal rewards", "ppo: groups of one",
    "ppo: no actions", "grpo: only EOS", "grpo: none ends", "grpo: none ends, masked", "grpo: equal rewards",
    "grpo: groups of one", "dapo: equal rewards",
)  # fmt: skip


def degenerate(injection: Injection) -> None:
    """One run of six steps; see the cases."""
    preset, _, case = injection.case.partition(": ")
    folder = injection.folder / "run"
    settings: dict[str, Any] = {**(_GROUPED if preset != "ppo" else {}), "algorithm": preset}
    if case == "groups of one":
        return _groups_of_one(folder, preset, settings)
    if case == "no actions":
        return _no_actions(folder, settings)
    if case.startswith(("only EOS", "none ends")):
        settings["model"] = _model(injection.folder / "model", ends=case == "only EOS")
        settings["overlong"] = {"masked": "mask", "bootstrapped": "bootstrap"}.get(case.rpartition(", ")[2], "end")
    else:
        settings["task"] = upslope.Task(prompts=task().prompts, reward=_constant)
    end = ended(lambda _: start(folder, **settings))
    if case == "none ends, masked":  # nothing is left to learn from: that is an error, not a success
        check_refused(end, "DivergenceError", "every row was cut and algorithm.overlong is 'mask'")
    else:
        check_done(end)
    check_all_finite(folder)
    return _check_told(folder, preset, case)


def check_all_finite(folder: Path) -> None:
    """Every metric of every step, and every weight of the last checkpoint."""
    for step in Run.open(folder).history():
        bad = [k for k, v in step.items() if isinstance(v, float) and not math.isfinite(v)]
        check(not bad, f"{bad} of step {step['step']} are not finite")
    check_finite(folder)


def _constant(completion: str) -> float:
    return 0.7


def _model(folder: Path, *, ends: bool) -> str:
    """A model that says EOS at once, or never, whatever the prompt: the bias of its last norm decides."""
    torch.manual_seed(0)
    model, tokenizer = tiny_model("tiny-gpt2")
    with torch.no_grad():
        said = model.get_output_embeddings().weight[tokenizer.eos_token_id]
        model.transformer.ln_f.bias += (1.0 if ends else -1.0) * 60.0 * said / said.norm() ** 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _check_told(folder: Path, preset: str, case: str) -> None:
    history = Run.open(folder).history()
    if case == "only EOS":
        check(all(s["length"] == s["terminated"] == 1 for s in history), "the rows are not single ends")
    elif case.startswith("none ends"):
        check(all(s["terminated"] == 0 for s in history), "some rows ended")
    elif preset == "dapo":
        check(
            all(s["samples"] == 0 and s["dropped/equal scores"] for s in history), "groups without a signal were kept"
        )
    elif preset == "grpo":
        first, last = (load_parameters(folder, step) for step in (STEPS - 1, STEPS))
        check(all(torch.equal(first[n], last[n]) for n in first), "weights moved without a signal")


def load_parameters(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The trained weights of one checkpoint."""
    return load_checkpoint(checkpoint_path(folder / "checkpoints", step)).tensors["parameters"]


def _groups_of_one(folder: Path, preset: str, settings: dict[str, Any]) -> None:
    """A critic needs no group; a group mean over one row would be that row, and is refused as a setting."""
    end = ended(lambda _: start(folder, **{**settings, "group_size": 1}))
    if preset == "grpo":
        check_refused(end, "RecipeError", "group_size is 1, but baseline 'group_mean' needs at least 2")
        return check(not folder.exists(), "a run folder was made")
    check_done(end)
    return check_all_finite(folder)


def _no_actions(folder: Path, settings: dict[str, Any]) -> None:
    """An engine that gives rows without an action in one step: they are dropped as empty, and the step is skipped."""
    check_done(ended(lambda _: _train_on_nothing(folder, settings)))
    check_all_finite(folder)
    counted = {s["step"]: s["dropped/empty"] for s in Run.open(folder).history() if s["dropped"]}
    check(counted == {3: 6}, f"{counted} rows are counted as empty, not 6 in step 3")


def _train_on_nothing(folder: Path, settings: dict[str, Any]) -> None:
    sample, calls = LocalEngine.sample, [0]

    def emptied(*given: Any, **how: Any) -> list[Rollout]:
        calls[0] += 1
        rollouts = sample(*given, **how)
        if calls[0] != 3:
            return rollouts
        return [r.replace(tokens=r.prompt.tokens, actions=(), positions=(), engine_logprobs=()) for r in rollouts]

    LocalEngine.sample = emptied
    start(folder, **settings)
