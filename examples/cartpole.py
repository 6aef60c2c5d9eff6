"""PPO on CartPole-v1 with upslope's estimators and losses, at SB3 zoo's settings: python examples/cartpole.py --seed 1

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
from torch.distributions import Categorical

from upslope import estimators, losses

NUM_ENVS, NUM_STEPS, EPOCHS, GAMMA, LAM = 8, 32, 20, 0.98, 0.8
LEARNING_RATE, CLIP, VALUE_COEF, ENTROPY_COEF, MAX_GRAD_NORM = 1e-3, 0.2, 1.0, 0.0, 0.5  # value_loss halves the square
# observations [M, 4]; actions, logprobs, values, rewards [M]; num_actions, bootstrap [B]; returns of ended episodes
Rollout = namedtuple("Rollout", "observations actions logprobs values rewards num_actions bootstrap episode_returns")


def network(outputs: int, gain: float) -> nn.Sequential:
    layers = [nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = network(2, gain=0.01), network(1, gain=1.0)

    def forward(self, observations: Tensor) -> tuple[Categorical, Tensor]:
        return Categorical(logits=self.actor(observations), validate_args=False), self.critic(observations).squeeze(-1)


@torch.no_grad()
def rollouts(envs: gym.vector.VectorEnv, model: ActorCritic, *, num_steps: int, seed: int) -> abc.Iterator[Rollout]:
    """Without end, num_steps of every environment by the model as it then is: one environment after the other."""
    observations, _ = envs.reset(seed=seed)
    while True:
        steps, episode_returns = [], []
        for _ in range(num_steps):
            actions = model(torch.from_numpy(observations))[0].sample().numpy()
            following, rewards, terminated, truncated, infos = envs.step(actions)
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


def update(model: ActorCritic, optimizer: torch.optim.Optimizer, rollout: Rollout, *, clip: float) -> None:
    seen, actions, old_logprobs, old_values, rewards, num_actions, bootstrap, _ = rollout
    advantages = estimators.gae(rewards, old_values, num_actions, bootstrap, gamma=GAMMA, lam=LAM)
    returns, advantages = advantages + old_values, estimators.whiten(advantages)
    weights, denominator = losses.aggregation(num_actions, over="tokens")
    mean = {"weights": weights, "denominator": denominator}
    clips = {"clip_low": clip, "clip_high": clip, "dual_clip": None}
    for _ in range(EPOCHS):
        policy, values = model(seen)
        surrogate = losses.clipped_surrogate(policy.log_prob(actions), old_logprobs, advantages, **clips, **mean)
        value = losses.value_loss(values, old_values, returns, clip=None, **mean)
        entropy = losses.weighted_sum(policy.entropy(), **mean)
        optimizer.zero_grad()
        (surrogate + VALUE_COEF * value - ENTROPY_COEF * entropy).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()


def train(*, steps: int, seed: int) -> abc.Callable[[np.ndarray], np.ndarray]:
    """As many whole rollouts as fit into `steps`, learning rate and clip falling to 0; returns the best actions."""
    torch.manual_seed(seed)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, eps=1e-5, fused=True)
    waiting = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # so that no episode's last observation is lost
    envs = gym.make_vec("CartPole-v1", NUM_ENVS, "sync", vector_kwargs=waiting, wrappers=[RecordEpisodeStatistics])
    count = max(1, steps // (NUM_ENVS * NUM_STEPS))
    for k, rollout in zip(range(count), rollouts(envs, model, num_steps=NUM_STEPS, seed=seed), strict=False):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - k / count)
        update(model, optimizer, rollout, clip=CLIP * (1 - k / count))
        if rollout.episode_returns and k % 20 == 0:
            print(f"step {(k + 1) * NUM_ENVS * NUM_STEPS:>7}  mean return {np.mean(rollout.episode_returns):6.1f}")
    return lambda observations: model.actor(torch.from_numpy(observations)).argmax(-1).numpy()


def evaluate(act: abc.Callable[[np.ndarray], np.ndarray], *, episodes: int, seed: int) -> float:
    """Mean return of the given number of episodes."""
    envs = gym.make_vec("CartPole-v1", episodes, "sync")
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
