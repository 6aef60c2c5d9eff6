"""A policy that is a table, and an engine that samples from it: the real loop on a problem small enough to be exact."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn

from upslope.engines.sampling import row_keys, sample_tokens
from upslope.policies.sampling import warp
from upslope.recipe import Recipe
from upslope.records import Rollout, Scores
from upslope.report.run import Run
from upslope.rewards import RewardTerm, Scorer
from upslope.tasks import Task
from upslope.training.interrupts import Interrupts
from upslope.training.optimizer import make_optimizer
from upslope.training.session import Session, TrainState

ARMS = (0.1, 0.3, 1.0, 0.5, 0.0)


def pull(completion):
    """The reward of the arm that was pulled; a row's text is its arm's number."""
    return ARMS[int(completion)]


class Table(nn.Module):
    def __init__(self, arms):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, arms))
        self.value_head = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.value_head.weight)


class TablePolicy:
    """One state; one action a row, or as many as come before the action `stop`. It satisfies policies.policy.Policy."""

    def __init__(self, arms, stop=None):
        self.module = Table(arms)
        self.frozen = copy.deepcopy(self.module)
        self.stop = stop

    device = torch.device("cpu")

    def encode(self, prompt):
        return type(prompt)(prompt.id, prompt.content, prompt.columns, (0,))

    def micro_batches(self, batch, *, max_tokens):
        return list(torch.arange(batch.num_rows).split(max(1, max_tokens // 2)))

    def score(self, batch, *, sampling, entropy=False, values=False):
        logits = warp(self.module.logits.expand(len(batch.actions), -1), sampling)
        logprobs = logits.log_softmax(1)
        value = self.module.value_head(torch.ones(len(batch.actions), 1))[:, 0]
        return Scores(
            logprobs.gather(1, batch.actions[:, None])[:, 0],
            -(logprobs.exp() * logprobs).sum(1) if entropy else None,
            value if values else None,
            self.module.value_head(torch.ones(batch.num_rows, 1))[:, 0] * ~batch.terminated if values else None,
        )

    @contextlib.contextmanager
    def reference(self):
        other = copy.copy(self)
        other.module = self.frozen
        yield other

    def dropout(self, enabled):
        return contextlib.nullcontext()


class TableEngine:
    def load(self, policy, *, version):
        self.policy, self.version = policy, version

    def rest(self):
        pass

    @torch.no_grad()
    def sample(self, prompts, *, group_size, sampling, seed):
        rows = [(g, p, s) for g, p in enumerate(prompts) for s in range(g * group_size, (g + 1) * group_size)]
        keys = row_keys(seed, torch.tensor([p.id for _, p, _ in rows]), torch.tensor([s for _, _, s in rows]))
        logits = warp(self.policy.module.logits.expand(len(rows), -1), sampling)
        length = 1 if self.policy.stop is None else sampling.max_new_tokens
        drawn = [sample_tokens(logits, keys, torch.tensor([position])) for position in range(length)]
        actions = torch.stack([tokens for tokens, _ in drawn], 1).tolist()
        logprobs = torch.stack([logprobs for _, logprobs in drawn], 1).tolist()
        return [self._rollout(*row, a, lp) for row, a, lp in zip(rows, actions, logprobs, strict=True)]

    def _rollout(self, group, prompt, sample, actions, logprobs):
        stop = self.policy.stop
        ended = stop is None or stop in actions
        count = actions.index(stop) + 1 if stop in actions else len(actions)
        kept = tuple(actions[:count])
        positions, text = tuple(range(count)), " ".join(map(str, kept))
        reason = "action" if ended else "length"
        tokens = (0, *kept)
        return Rollout(
            prompt, group, sample, tokens, kept, positions, tuple(logprobs[:count]), text, reason, self.version
        )


def bandit_session(
    folder, settings, *, reward=pull, metric=None, arms=5, stop=None, stack, policy=None, engine=None, prompts=("pull",)
):
    """A session of the real loop over the table, or over another policy and its engine."""
    base = {
        "sampling": {"max_new_tokens": 4},
        "training": {"steps": 60, "prompts_per_step": 16},
        "optimizer": {"lr": 0.1, "critic_lr": 0.1, "warmup_steps": 0},
        "run": {"trackers": [], "checkpoint_every_steps": "none", "samples_per_step": 0},
    }
    recipe = Recipe.resolve(base, settings)
    task = Task(prompts=prompts, reward=RewardTerm(reward, name="arm"), metric=metric)
    policy = policy or TablePolicy(arms, stop)
    run = stack.enter_context(Run.create(folder, recipe.to_toml()))
    return Session(
        recipe=recipe,
        run=run,
        policy=policy,
        engine=engine or TableEngine(),
        task=task,
        scorer=stack.enter_context(Scorer(task.terms, timeout_s=10, isolation="none")),
        optimizer=make_optimizer(policy.module, recipe.optimizer),
        sampling=sampling_of(recipe),
        trackers=[],
        interrupts=stack.enter_context(Interrupts()),
        state=TrainState(kl_coef=recipe.algorithm.kl_coef),
    )


def sampling_of(recipe):
    from upslope.policies.sampling import Sampling

    s = recipe.sampling
    return Sampling(s.temperature, s.top_k, s.top_p, s.max_new_tokens, s.stop)
