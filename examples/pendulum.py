"""PPO on Pendulum-v1 with upslope's estimators and losses, plain Gaussian noise: python examples/pendulum.py --seed 1

A batch is M actions of B rows, end to end; a row is an episode, or the piece of one that a rollout holds. After its
end a row that terminated is worth 0, and a row that was cut (time limit, end of the rollout) what the critic says.
"""

import argparse
from collections import abc, namedtuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import RecordEpisodeStatistics
from torch import Tensor, nn
from torch.distributions import Normal

from upslope import estimators, losses

NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCH, GAMMA, LAM = 4, 1024, 10, 64, 0.9, 0.95
LEARNING_RATE, CLIP, VALUE_COEF, ENTROPY_COEF, MAX_GRAD_NORM = 1e-3, 0.2, 1.0, 0.0, 0.5  # value_loss halves the square
# observations [M, 3]; actions, logprobs, values, rewards [M]; num_actions, bootstrap [B]; returns of ended episodes
Rollout = namedtuple("Rollout", "observations actions logprobs values rewards num_actions bootstrap episode_returns")


def network(gain: float) -> nn.Sequential:
    layers = [nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, 1)]
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.Flatten(0))


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic, self.log_std = network(0.01), network(1.0), nn.Parameter(torch.zeros(()))

    def forward(self, observations: Tensor) -> tuple[Normal, Tensor]:
        return Normal(self.actor(observations), self.log_std.exp(), validate_args=False), self.critic(observations)


@torch.no_grad()
def rollouts(envs: gym.vector.VectorEnv, model: ActorCritic, *, num_steps: int, seed: int) -> abc.Iterator[Rollout]:
    """Without end, num_steps of every environment by the model as it then is: one environment after the other."""
    observations, _ = envs.reset(seed=seed)
    while True:
        steps, episode_returns = [], []
        for _ in range(num_steps):
            actions = model(torch.from_numpy(observations))[0].sample().numpy()
            following, rewards, terminated, truncated, infos = envs.step(actions[:, None].clip(-2.0, 2.0))
            ended = terminated | truncated
            steps.append((observations, actions, rewards.astype(np.float32), following, terminated, ended))
            observations = following
            if ended.any():
                episode_returns += infos["episode"]["r"][ended].tolist()
                observations, _ = envs.reset(options={"reset_mask": ended})
        ended[:] = True  # the rollout's end cuts the row that each environment is in
        columns = (torch.from_numpy(np.stack(column, axis=1)).flatten(0, 1) for column in zip(*steps, strict=True))
        seen, taken, earned, following, terminated, ended = columns
        ends = ended.nonzero().squeeze(1)
        num_actions = ends.diff(prepend=torch.tensor([-1]))
        bootstrap = torch.where(terminated[ends], 0.0, model(following[ends])[1])
        policy, values = model(seen)
        yield Rollout(seen, taken, policy.log_prob(taken), values, earned, num_actions, bootstrap, episode_returns)


def update(model: ActorCritic, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    seen, actions, old_logprobs, old_values, rewards, num_actions, bootstrap, _ = rollout
    advantages = estimators.gae(rewards, old_values, num_actions, bootstrap, gamma=GAMMA, lam=LAM)
    returns, advantages = advantages + old_values, estimators.whiten(advantages)
    for index in (index for _ in range(EPOCHS) for index in torch.randperm(len(actions)).split(MINIBATCH)):
        policy, values = model(seen[index])
        weights, denominator = losses.aggregation(torch.ones_like(index), over="tokens")  # each action a row
        mean = {"weights": weights, "denominator": denominator}
        clips = {"clip_low": CLIP, "clip_high": CLIP, "dual_clip": None}
        logprobs = policy.log_prob(actions[index])
        surrogate = losses.clipped_surrogate(logprobs, old_logprobs[index], advantages[index], **clips, **mean)
        value = losses.value_loss(values, None, returns[index], clip=None, **mean)
        entropy = losses.weighted_sum(policy.entropy(), **mean)
        optimizer.zero_grad()
        (surrogate + VALUE_COEF * value - ENTROPY_COEF * entropy).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()


def train(*, steps: int, seed: int) -> abc.Callable[[np.ndarray], np.ndarray]:
    """As many whole rollouts as fit into `steps`; returns the best actions."""
    torch.manual_seed(seed)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, eps=1e-5, fused=True)
    waiting = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # so that no episode's last observation is lost
    envs = gym.make_vec("Pendulum-v1", NUM_ENVS, "sync", vector_kwargs=waiting, wrappers=[RecordEpisodeStatistics])
    num_steps = max(1, min(NUM_STEPS, steps // NUM_ENVS))
    size = NUM_ENVS * num_steps
    for k, rollout in zip(range(steps // size), rollouts(envs, model, num_steps=num_steps, seed=seed), strict=False):
        update(model, optimizer, rollout)
        print(f"step {(k + 1) * size:>7}  mean return {np.mean(rollout.episode_returns or np.nan):7.1f}")
    return lambda observations: model.actor(torch.from_numpy(observations)).detach().clip(-2.0, 2.0)[:, None].numpy()


def evaluate(act: abc.Callable[[np.ndarray], np.ndarray], *, episodes: int, seed: int) -> float:
    """Mean return of the given number of episodes."""
    envs = gym.make_vec("Pendulum-v1", episodes, "sync")
    observations, _ = envs.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = envs.step(act(observations))
        returns += rewards * running
        running &= ~(terminated | truncated)
    return float(returns.mean())


if __name__ == "__main__":
    torch.set_num_threads(1)  # these networks are too small for more
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=102_400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    best_actions = train(steps=args.steps, seed=args.seed)
    print(f"mean return of 100 episodes: {evaluate(best_actions, episodes=100, seed=10_000 + args.seed):.1f}")
