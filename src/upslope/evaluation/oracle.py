"""Exact values of a small policy: every sequence it can write, J, Q, V, A, occupancies and the policy gradient.

A policy over K symbols and at most `horizon` actions a row writes finitely many sequences. Enumerated with their
probabilities, they turn expectations into sums, so an estimator or loss of yours can be checked without sampling:

    table = torch.zeros(num_prefixes(3, horizon=4), 3, dtype=torch.float64, requires_grad=True)
    tree = enumerate_sequences(tabular_logits(table), horizon=4, end=2)
    rewards = score_rewards(tree, lambda sequence: float(sequence.count(1)))
    exact = solve(tree, rewards, gamma=1.0)
    advantages = tree.pack(exact.advantages.detach())
    loss = my_loss(tree.pack(tree.logprobs), advantages, weights=tree.weights, denominator=1.0)
    # -grad(loss) must equal policy_gradient(exact, [table])

A state is the prefix written so far; S counts the states that can be reached, in order of length. Tables are [S, K],
a row's actions are packed as everywhere: [M] with num_actions [R] for the R sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upslope.errors import RecordError
from upslope.estimators import row_ids, row_sum
from upslope.estimators.scan import promote
from upslope.records import Prompt, Rollout

Logits = Callable[[Tensor], Tensor]
MAX_SEQUENCES = 2**18


@dataclass(frozen=True, slots=True)
class Enumeration:
    """Every state and every sequence of a policy.

    prefixes: the S states, shortest first, so prefixes[0] is empty; level_sizes: how many there are of each length.
    logprobs [S, K] in nats, differentiable. children [S, K]: the state an action leads to, -1 where the row ends or
    the action is banned (log-probability -inf; in no sequence).
    Sequences: actions and states [M] packed, num_actions [R], terminated [R]: ended by the end symbol, not cut.
    """

    prefixes: tuple[tuple[int, ...], ...]
    level_sizes: tuple[int, ...]
    logprobs: Tensor
    children: Tensor
    actions: Tensor
    states: Tensor
    num_actions: Tensor
    terminated: Tensor

    def pack(self, table: Tensor) -> Tensor:
        """The entries [M] of a table [S, K], or of per-state values [S], along every sequence."""
        return table[self.states] if table.dim() == 1 else table[self.states, self.actions]

    @property
    def probabilities(self) -> Tensor:
        """The probability [R] of each sequence, differentiable; they sum to 1."""
        return row_sum(self.pack(self.logprobs), self.num_actions).exp()

    @property
    def weights(self) -> Tensor:
        """Each sequence's probability at each of its actions [M], no gradient: with them as weights and a denominator
        of 1 a loss is its expectation over sequences."""
        return self.probabilities.detach()[row_ids(self.num_actions)]

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The symbols of each sequence."""
        return [tuple(row.tolist()) for row in torch.split(self.actions, self.num_actions.tolist())]


@dataclass(frozen=True, slots=True)
class Solution:
    """Exact values of a policy under given rewards, all differentiable in its logits.

    objective: J, the expected discounted return, a scalar. values [S], action_values [S, K] (0 at banned actions),
    advantages [S, K] = action_values - values. occupancy [S] = gamma^t times the probability of reaching the state.
    """

    objective: Tensor
    values: Tensor
    action_values: Tensor
    advantages: Tensor
    occupancy: Tensor


def num_prefixes(num_symbols: int, *, horizon: int) -> int:
    """1 + K + ... + K^(horizon - 1): the rows of a table of logits for `tabular_logits`."""
    return sum(num_symbols**length for length in range(horizon))


def tabular_logits(table: Tensor) -> Logits:
    """The policy whose logits after a prefix are a row of table [num_prefixes, K]: by length, then lexicographic."""
    num_symbols = table.shape[1]

    def logits(prefixes: Tensor) -> Tensor:
        index = torch.zeros(prefixes.shape[0], dtype=torch.int64, device=prefixes.device)
        for symbols in prefixes.unbind(1):
            index = index * num_symbols + symbols
        return table[num_prefixes(num_symbols, horizon=prefixes.shape[1]) + index]

    return logits


def language_model_logits(model: nn.Module, prompt: Sequence[int], token_ids: Sequence[int]) -> Logits:
    """The policy of a Transformers causal LM after a prompt, restricted to a few tokens and renormalised over them.

    Symbol k stands for token_ids[k]. The model is used as it is: put it in eval mode, or its dropout is sampled anew.
    """

    def logits(prefixes: Tensor) -> Tensor:
        ids = torch.tensor(token_ids, device=prefixes.device)
        start = torch.tensor(prompt, device=prefixes.device).expand(prefixes.shape[0], -1)
        output: Tensor = model(input_ids=torch.cat((start, ids[prefixes]), 1), use_cache=False).logits
        return output[:, -1, ids]

    return logits


def enumerate_sequences(
    logits: Logits, *, horizon: int, end: int | None, device: torch.device | str = "cpu"
) -> Enumeration:
    """Every sequence of at most `horizon` actions, with the logits of every state.

    logits: from prefixes [n, t] of symbols (int64 on the given device, t = 0 first) to [n, K], differentiable or
    not, of any float dtype. end: the symbol that ends a row, and its last action; None where every row is cut.
    Raises: RecordError when horizon < 1 or there are more than MAX_SEQUENCES sequences.
    """
    if horizon < 1:
        raise RecordError(f"sequences were to be enumerated to horizon {horizon}; give horizon >= 1")
    prefixes = torch.zeros(1, 0, dtype=torch.int64, device=device)
    levels, logprobs, goes_on = [prefixes], [], []
    for length in range(1, horizon + 1):
        level = promote(logits(prefixes))[0].log_softmax(-1)
        if level.numel() > MAX_SEQUENCES:
            raise RecordError(
                f"a horizon of {horizon} over {level.shape[1]} symbols makes more than {MAX_SEQUENCES} sequences; "
                "shorten it or restrict the symbols"
            )
        alive = level.detach() > -torch.inf
        alive &= torch.full_like(alive, length < horizon)
        if end is not None:
            alive[:, end] = False
        logprobs.append(level)
        goes_on.append(alive)
        parents, symbols = alive.nonzero().unbind(1)
        prefixes = torch.cat((prefixes[parents], symbols[:, None]), 1)
        levels.append(prefixes)
        if not prefixes.shape[0]:
            break
    return _assemble(levels[:-1], torch.cat(logprobs), torch.cat(goes_on), end)


def _assemble(levels: list[Tensor], logprobs: Tensor, goes_on: Tensor, end: int | None) -> Enumeration:
    """The enumeration from its prefixes by length, and which [S, K] of its choices lead to another state."""
    children = torch.full_like(goes_on, -1, dtype=torch.int64)
    children[goes_on] = torch.arange(1, int(goes_on.sum()) + 1, device=children.device)
    paths: list[tuple[int, ...]] = [(0,)]
    for parent in goes_on.nonzero()[:, 0].tolist():
        paths.append((*paths[parent], len(paths)))
    prefixes = tuple(tuple(prefix) for level in levels for prefix in level.tolist())
    last_states, last_actions = ((children < 0) & (logprobs.detach() > -torch.inf)).nonzero().unbind(1)
    ends = list(zip(last_states.tolist(), last_actions.tolist(), strict=True))

    def packed(rows: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor([value for row in rows for value in row], device=logprobs.device)

    return Enumeration(
        prefixes=prefixes,
        level_sizes=tuple(level.shape[0] for level in levels),
        logprobs=logprobs,
        children=children,
        actions=packed([(*prefixes[state], action) for state, action in ends]),
        states=packed([paths[state] for state, _ in ends]),
        num_actions=packed([tuple(len(paths[state]) for state, _ in ends)]),
        terminated=last_actions == end if end is not None else torch.zeros_like(last_actions, dtype=torch.bool),
    )


def score_rewards(tree: Enumeration, score: Callable[[tuple[int, ...]], float]) -> Tensor:
    """Rewards [S, K] of a score of whole sequences: paid at the last action, 0 before."""
    rewards = torch.zeros_like(tree.logprobs, requires_grad=False)
    last = tree.num_actions.cumsum(0) - 1
    scores = torch.tensor([score(sequence) for sequence in tree.sequences], dtype=rewards.dtype, device=rewards.device)
    rewards[tree.states[last], tree.actions[last]] = scores
    return rewards


def action_rewards(tree: Enumeration, reward: Callable[[tuple[int, ...], int], float]) -> Tensor:
    """Rewards [S, K] of a reward of (prefix, action)."""
    num_symbols = tree.logprobs.shape[1]
    table = [[reward(prefix, action) for action in range(num_symbols)] for prefix in tree.prefixes]
    return torch.tensor(table, dtype=tree.logprobs.dtype, device=tree.logprobs.device)


def solve(tree: Enumeration, rewards: Tensor, *, gamma: float) -> Solution:
    """J, V, Q, A and occupancies by backward and forward induction over the tree.

    rewards [S, K] are constants. After a row's last action nothing more is earned, ended or cut; add gamma V to the
    reward of a cut row's last action where it is to be bootstrapped. Occupancies sum to the expected discounted
    length.
    """
    probabilities = tree.logprobs.exp()
    action_values, values = torch.empty_like(rewards[:0]), rewards.new_zeros(0)
    start = len(tree.prefixes)
    for size in reversed(tree.level_sizes):
        here, children = slice(start - size, start), tree.children[start - size : start]
        following = torch.cat((values, rewards.new_zeros(1)))[torch.where(children < 0, -1, children - start)]
        level = torch.where(probabilities[here] > 0, rewards[here] + gamma * following, 0.0)
        # values begins with the next level, the children's, whose first state is `start`
        values = torch.cat(((probabilities[here] * level).sum(1), values))
        action_values = torch.cat((level, action_values))
        start -= size
    advantages = action_values - values[:, None]
    return Solution(values[0], values, action_values, advantages, _occupancy(tree, probabilities, gamma))


def _occupancy(tree: Enumeration, probabilities: Tensor, gamma: float) -> Tensor:
    level = torch.ones_like(probabilities[:1, 0])
    levels, start = [level], 0
    for size in tree.level_sizes[:-1]:
        here = slice(start, start + size)
        level = gamma * (level[:, None] * probabilities[here])[tree.children[here] >= 0]
        levels.append(level)
        start += size
    return torch.cat(levels)


def policy_gradient(solution: Solution, parameters: Sequence[Tensor]) -> list[Tensor]:
    """grad J, by differentiating the exact objective."""
    return _gradient(solution.objective, parameters)


def policy_gradient_theorem(tree: Enumeration, solution: Solution, parameters: Sequence[Tensor]) -> list[Tensor]:
    """grad J = sum over s, a of d(s) Q(s, a) grad pi(a|s): the same by the theorem, with d and Q held constant.

    Source: Sutton et al. 2000, "Policy gradient methods for reinforcement learning with function approximation",
    theorem 1.
    """
    weights = solution.occupancy.detach()[:, None] * solution.action_values.detach()
    return _gradient((weights * tree.logprobs.exp()).sum(), parameters)


def _gradient(objective: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(objective, parameters, retain_graph=True, materialize_grads=True))


def rollouts(
    tree: Enumeration, rewards: Tensor, *, prompt: Prompt, token_ids: Sequence[int] | None = None
) -> list[Rollout]:
    """Every sequence as a rollout of a causal policy after the prompt's tokens, in order: `collate` makes the batch.

    rewards [S, K]; symbol k is written as token_ids[k], by default as k. engine_logprobs are the exact ones.
    Raises: RecordError when the prompt has no tokens, so that nothing would have decided the first action.
    """
    if not prompt.tokens:
        raise RecordError(f"prompt {prompt.id} has no tokens; give it at least a beginning-of-sequence token")
    lengths = tree.num_actions.tolist()
    logprobs = torch.split(tree.pack(tree.logprobs.detach()), lengths)
    paid = torch.split(tree.pack(rewards), lengths)
    rows = []
    for sample, (symbols, ended) in enumerate(zip(tree.sequences, tree.terminated.tolist(), strict=True)):
        actions = symbols if token_ids is None else tuple(token_ids[symbol] for symbol in symbols)
        first = len(prompt.tokens) - 1
        rows.append(
            Rollout(
                prompt=prompt,
                group=prompt.id,
                sample=sample,
                tokens=prompt.tokens + actions,
                actions=actions,
                positions=tuple(range(first, first + len(actions))),
                engine_logprobs=tuple(logprobs[sample].tolist()),
                text=" ".join(map(str, actions)),
                stop_reason="eos" if ended else "length",
                rewards=tuple(paid[sample].tolist()),
            )
        )
    return rows
