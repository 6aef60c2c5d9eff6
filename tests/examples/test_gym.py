"""The Gymnasium examples: packed rows beside plain loops over what each environment saw, and 2,000 steps of each."""

import runpy
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope import estimators

gym = pytest.importorskip("gymnasium")

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS = {"cartpole": ("CartPole-v1", 20), "pendulum": ("Pendulum-v1", 30)}  # environment, and a short time limit
NUM_ENVS, NUM_STEPS = 5, 50


@pytest.fixture(params=["cartpole", "pendulum"])
def name(request):
    return request.param


@pytest.fixture
def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


class Recorder(gym.Wrapper):
    """Writes down every step: observation, reward, next observation, terminated, truncated."""

    def __init__(self, env):
        super().__init__(env)
        self.steps = []

    def reset(self, **kwargs):
        self.observation, info = self.env.reset(**kwargs)
        return self.observation, info

    def step(self, action):
        following, reward, terminated, truncated, info = self.env.step(action)
        self.steps.append((self.observation, float(reward), following, terminated, truncated))
        self.observation = following
        return following, reward, terminated, truncated, info


@pytest.fixture
def recorded(name, example):
    """A model, two rollouts by it, one after the other, and what every environment saw meanwhile."""
    torch.manual_seed(0)
    environment, limit = SETTINGS[name]
    recorders = [Recorder(gym.make(environment, max_episode_steps=limit)) for _ in range(NUM_ENVS)]
    envs = gym.vector.SyncVectorEnv(
        [lambda recorder=recorder: gym.wrappers.RecordEpisodeStatistics(recorder) for recorder in recorders],
        autoreset_mode=gym.vector.AutoresetMode.DISABLED,
    )
    model = example["ActorCritic"]()
    stream = example["rollouts"](envs, model, num_steps=NUM_STEPS, seed=0)
    return model, [next(stream), next(stream)], [recorder.steps for recorder in recorders]


def pieces(logs):
    """What each rollout should hold: for each of the two, the environments' steps one environment after the other."""
    return [[log[k * NUM_STEPS : (k + 1) * NUM_STEPS] for log in logs] for k in range(2)]


def test_packed_rewards_and_returns_are_the_environments_own(recorded):
    _, rollouts, logs = recorded
    assert all(len(log) == 2 * NUM_STEPS for log in logs)
    for rollout, piece in zip(rollouts, pieces(logs), strict=True):
        steps = [step for log in piece for step in log]
        np.testing.assert_array_equal(rollout.observations, np.stack([step[0] for step in steps]))
        np.testing.assert_array_equal(rollout.rewards, np.float32([step[1] for step in steps]))
        assert rollout.num_actions.sum() == NUM_ENVS * NUM_STEPS
    counted = [value for rollout in rollouts for value in rollout.episode_returns]
    assert sorted(counted) == pytest.approx(sorted(episode_returns(logs)), abs=1e-4)


def episode_returns(logs):
    for log in logs:
        total = 0.0
        for _, reward, _, terminated, truncated in log:
            total += reward
            if terminated or truncated:
                yield total
                total = 0.0


def test_packed_gae_is_each_environments_own_backward_loop(recorded, name, example):
    """CHECKS 32: a row that terminated is worth 0 after its end, a row cut by time or by the rollout is worth V."""
    model, rollouts, logs = recorded
    gamma, lam = example["GAMMA"], example["LAM"]

    def value(observation):
        with torch.no_grad():
            return float(model(torch.from_numpy(observation)[None])[1])

    kinds = {"terminated": 0, "truncated": 0, "rollout": 0}
    for rollout, piece in zip(rollouts, pieces(logs), strict=True):
        expected = []
        for log in piece:
            advantage, backward = 0.0, []
            for t, (observation, reward, following, terminated, truncated) in reversed(list(enumerate(log))):
                ended = terminated or truncated
                kinds["terminated"] += terminated
                kinds["truncated"] += truncated
                kinds["rollout"] += t == NUM_STEPS - 1 and not ended
                delta = reward + gamma * (0.0 if terminated else value(following)) - value(observation)
                advantage = delta + (0.0 if ended else gamma * lam * advantage)
                backward.append(advantage)
            expected += reversed(backward)
        actual = estimators.gae(
            rollout.rewards, rollout.values, rollout.num_actions, rollout.bootstrap, gamma=gamma, lam=lam
        )
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    assert kinds["truncated"]
    assert kinds["rollout"]
    assert bool(kinds["terminated"]) == (name == "cartpole")


def test_an_update_follows_its_rollout(recorded, name, example):
    """The critic comes nearer to the returns; the policy's importance-weighted advantage, 0 before, rises."""
    model, (rollout, _), _ = recorded
    advantages = estimators.gae(
        rollout.rewards,
        rollout.values,
        rollout.num_actions,
        rollout.bootstrap,
        gamma=example["GAMMA"],
        lam=example["LAM"],
    )
    returns, whitened = advantages + rollout.values, estimators.whiten(advantages)
    optimizer = torch.optim.Adam(model.parameters(), lr=example["LEARNING_RATE"])
    example["update"](model, optimizer, rollout, **({"clip": 0.2} if name == "cartpole" else {}))
    with torch.no_grad():
        policy, values = model(rollout.observations)
        gain = ((policy.log_prob(rollout.actions) - rollout.logprobs).exp() * whitened).mean()
    assert gain > 0.001
    assert (values - returns).square().mean() < 0.9 * (rollout.values - returns).square().mean()


def run(name, monkeypatch, capsys, *, seed):
    """The last printed line of the script over 2,000 steps."""
    monkeypatch.setattr(sys, "argv", [name, "--steps", "2000", "--seed", str(seed)])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()[-1]


def test_script_repeats_itself_by_seed(name, monkeypatch, capsys):
    """CHECKS 39: 2,000 steps print the same mean return under one seed, and another under the next."""
    first, again, other = (run(name, monkeypatch, capsys, seed=seed) for seed in (1, 1, 2))
    assert first.startswith("mean return of 100 episodes: ")
    assert first == again
    assert first != other


def test_cartpole_beats_random_within_2000_steps():
    example = runpy.run_path(str(EXAMPLES / "cartpole.py"))
    untrained = np.random.default_rng(0)
    random = example["evaluate"](lambda seen: untrained.integers(0, 2, len(seen)), episodes=100, seed=0)
    trained = [
        example["evaluate"](example["train"](steps=2_000, seed=seed), episodes=20, seed=10_000) for seed in range(5)
    ]
    assert random == pytest.approx(22, abs=4)
    assert statistics.mean(trained) > 2 * random


@pytest.mark.parametrize("script", ["cartpole.py", "pendulum.py"])
def test_examples_stay_short(script):
    assert len((EXAMPLES / script).read_text().splitlines()) < 120
