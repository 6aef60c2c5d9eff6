"""upslope's Gymnasium examples beside Stable-Baselines3's PPO: python benchmarks/gymnasium_ppo.py [--seeds 3].

Needs `pip install -e '.[bench]'`. Every learner takes the same number of environment steps at the settings of SB3's
zoo, seed after seed in turn, on one thread, and is evaluated by its best actions on the same 100 episodes. For
Pendulum the zoo has SB3 explore by gSDE; upslope's example has plain Gaussian noise, so SB3 runs both ways. Seconds
are of training alone: of the clock, and of the processor, which other programs on the machine disturb less and whose
ratio to upslope's is therefore the one given. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from results import processor

from upslope.errors import DependencyError

Act = Callable[[np.ndarray], np.ndarray]
EXAMPLES = Path(__file__).parents[1] / "examples"
CARTPOLE = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "learning_rate": lambda left: 1e-3 * left,
    "clip_range": lambda left: 0.2 * left,
}
PENDULUM = {
    "n_steps": 1024,
    "batch_size": 64,
    "gae_lambda": 0.95,
    "gamma": 0.9,
    "n_epochs": 10,
    "learning_rate": 1e-3,
    "clip_range": 0.2,
}
GSDE = {"use_sde": True, "sde_sample_freq": 4}


class Measured(NamedTuple):
    """Mean return of the evaluation, and the clock's and the processor's seconds of one training."""

    score: float
    wall_s: float
    cpu_s: float


def upslope_learner(script: dict[str, Any]) -> Callable[[int, int], Act]:
    """steps, seed -> best actions, by an example's own `train`."""

    def learn(steps: int, seed: int) -> Act:
        with contextlib.redirect_stdout(io.StringIO()):
            return script["train"](steps=steps, seed=seed)

    return learn


def sb3_learner(environment: str, num_envs: int, settings: dict[str, Any]) -> Callable[[int, int], Act]:
    """steps, seed -> best actions, by Stable-Baselines3's PPO with an MLP."""
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env
    except ImportError as error:
        raise DependencyError("stable-baselines3", "bench") from error

    def learn(steps: int, seed: int) -> Act:
        model = PPO("MlpPolicy", make_vec_env(environment, num_envs, seed=seed), seed=seed, device="cpu", **settings)
        model.learn(steps)
        return lambda observations: model.predict(observations, deterministic=True)[0]

    return learn


def measure(
    learners: dict[str, Callable[[int, int], Act]], script: dict[str, Any], *, steps: int, num_seeds: int
) -> dict[str, list[Measured]]:
    """One training of every learner by every seed; who goes first turns with the seed."""
    for learn in learners.values():
        learn(4_096, 0)  # what is imported and allocated on first use is timed for none
    results: dict[str, list[Measured]] = {name: [] for name in learners}
    for seed in range(num_seeds):
        for name in list(learners) if seed % 2 == 0 else reversed(learners):
            wall, cpu = time.perf_counter(), time.process_time()
            act = learners[name](steps, seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            results[name].append(Measured(script["evaluate"](act, episodes=100, seed=10_000 + seed), wall, cpu))
    return results


def show(environment: str, steps: int, results: dict[str, list[Measured]]) -> None:
    """Rows of the table: mean return, median seconds, and the ratios of processor seconds to upslope's."""
    for name, runs in results.items():
        scores = [run.score for run in runs]
        ratios = [run.cpu_s / own.cpu_s for run, own in zip(runs, results["upslope"], strict=True)]
        wall, cpu = (
            statistics.median(column) for column in ([run.wall_s for run in runs], [run.cpu_s for run in runs])
        )
        print(
            f"| {environment} | {name} | {steps:,} | {statistics.mean(scores):.1f} ({spread(scores, 1)}) "
            f"| {wall:.1f} | {cpu:.1f} | {statistics.median(ratios):.2f} ({spread(ratios, 2)}) |",
            flush=True,
        )


def spread(values: list[float], digits: int) -> str:
    """The values, seed by seed."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=102_400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cartpole, pendulum = (runpy.run_path(str(EXAMPLES / f"{name}.py")) for name in ("cartpole", "pendulum"))
    suites = {
        "CartPole-v1": (cartpole, {"Stable-Baselines3": sb3_learner("CartPole-v1", 8, CARTPOLE)}),
        "Pendulum-v1": (
            pendulum,
            {
                "Stable-Baselines3, no gSDE": sb3_learner("Pendulum-v1", 4, PENDULUM),
                "Stable-Baselines3, gSDE": sb3_learner("Pendulum-v1", 4, PENDULUM | GSDE),
            },
        ),
    }
    import stable_baselines3

    print(f"{platform.platform()}, {processor()}, 1 thread")
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, gymnasium {gymnasium.__version__}, "
        f"stable-baselines3 {stable_baselines3.__version__}, numpy {np.__version__}"
    )
    print(
        "| environment | learner | steps | mean return (by seed) | seconds | CPU seconds | CPU / upslope's (by seed) |"
    )
    print("|---|---|---|---|---|---|---|")
    for environment, (script, peers) in suites.items():
        learners = {"upslope": upslope_learner(script)} | peers
        show(environment, args.steps, measure(learners, script, steps=args.steps, num_seeds=args.seeds))


if __name__ == "__main__":
    main()
