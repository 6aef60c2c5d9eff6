"""upslope's Gymnasium examples beside Stable-Baselines3's PPO: python benchmarks/gymnasium_ppo.py [--seeds 3].

Needs `pip install -e '.[bench]'`. Every learner takes the same number of environment steps at the settings of SB3's
zoo, seed after seed in turn, on one thread, and is evaluated by its best actions on the same 100 episodes. For
Pendulum the zoo has SB3 explore by gSDE; upslope's example has plain Gaussian noise, so SB3 runs both ways. Seconds
are of training alone. Takes about ten minutes.
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
from typing import Any

import gymnasium
import numpy as np
import torch
from scan import processor

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
) -> dict[str, list[tuple[float, float]]]:
    """(mean return, seconds of training) of every learner, one pair a seed; who goes first turns with the seed."""
    for learn in learners.values():
        learn(4_096, 0)  # what is imported and allocated on first use is timed for none
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in learners}
    for seed in range(num_seeds):
        order = list(learners) if seed % 2 == 0 else list(learners)[::-1]
        for name in order:
            start = time.perf_counter()
            act = learners[name](steps, seed)
            seconds = time.perf_counter() - start
            results[name].append((script["evaluate"](act, episodes=100, seed=10_000 + seed), seconds))
    return results


def show(environment: str, steps: int, results: dict[str, list[tuple[float, float]]]) -> None:
    """Rows of the table: mean return, seconds (median over seeds), and the median of their ratios to upslope's."""
    baseline = [seconds for _, seconds in results["upslope"]]
    for name, pairs in results.items():
        returns = [score for score, _ in pairs]
        seconds = [value for _, value in pairs]
        ratio = statistics.median(value / own for value, own in zip(seconds, baseline, strict=True))
        by_seed = ", ".join(f"{score:.1f}" for score in returns)
        print(
            f"| {environment} | {name} | {steps:,} | {statistics.mean(returns):.1f} ({by_seed}) "
            f"| {statistics.median(seconds):.1f} | {ratio:.2f} |",
            flush=True,
        )


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
    print("| environment | learner | steps | mean return (by seed) | seconds | seconds / upslope's |")
    print("|---|---|---|---|---|---|")
    for environment, (script, peers) in suites.items():
        learners = {"upslope": upslope_learner(script)} | peers
        show(environment, args.steps, measure(learners, script, steps=args.steps, num_seeds=args.seeds))


if __name__ == "__main__":
    main()
