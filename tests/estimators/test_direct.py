"""Direct advantage estimation against exact advantages, by enumeration of a small policy."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import RecordError
from upslope.estimators import discounted_returns
from upslope.estimators.direct import (
    DirectHead,
    Ridge,
    centred_vectors,
    chosen_ridge,
    direct_advantage,
    mean_head,
)
from upslope.evaluation.oracle import enumerate_sequences, num_prefixes, score_rewards, solve, tabular_logits

K, HORIZON, GAMMA = 3, 4, 0.9
TINY = Ridge(1e-9, 1e-9)


class World:
    """A policy over three symbols, of which the last ends a row, paid by the whole sequence; its tabular features."""

    def __init__(self, seed=0, gamma=GAMMA):
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(num_prefixes(K, horizon=HORIZON), K, generator=generator, dtype=torch.float64)
        self.tree = enumerate_sequences(tabular_logits(table), horizon=HORIZON, end=2)
        pay = {s: float(torch.rand(1, generator=generator, dtype=torch.float64)) for s in self.tree.sequences}
        self.rewards = score_rewards(self.tree, pay.__getitem__)
        self.exact = solve(self.tree, self.rewards, gamma=gamma)
        one_hot = torch.eye(len(self.tree.prefixes), dtype=torch.float64)
        self.states = one_hot[self.tree.states]
        self.vectors = torch.eye(K, dtype=torch.float64)
        self.logprobs = self.tree.logprobs[self.tree.states]
        self.actions = centred_vectors(self.vectors, self.logprobs, self.tree.actions)
        nothing = torch.zeros(len(self.tree.num_actions), dtype=torch.float64)
        self.returns = discounted_returns(self.tree.pack(self.rewards), self.tree.num_actions, nothing, gamma=gamma)

    @property
    def data(self):
        return self.states, self.actions, self.returns, self.tree.num_actions


@pytest.fixture(scope="module")
def world():
    return World()


def test_tabular_features_recover_the_exact_advantages_and_values(world):
    """Every sequence by its probability, or each just once: text is certain, so no residual is left either way."""
    for weights in (world.tree.weights, None):
        head = direct_advantage(*world.data, gamma=GAMMA, ridge=TINY, weights=weights)
        expected = world.tree.pack(world.exact.advantages)
        assert expected.abs().max() > 0.1
        assert_close(head.advantages(world.states, world.actions), expected, rtol=0, atol=1e-5)
        assert_close(head.values(world.states), world.tree.pack(world.exact.values), rtol=0, atol=1e-5)


def test_a_few_sampled_rows_fix_the_states_that_they_passed_through(world):
    """With all actions of a state seen, its advantages are exact from single rows: no average over luck is needed."""
    head = direct_advantage(*world.data, gamma=GAMMA, ridge=TINY)
    root = torch.eye(len(world.tree.prefixes), dtype=torch.float64)[:1].expand(K, -1)
    actions = centred_vectors(world.vectors, world.tree.logprobs[:1].expand(K, -1), torch.arange(K))
    assert_close(head.advantages(root, actions), world.exact.advantages[0], rtol=0, atol=1e-5)


def test_without_an_advantage_part_it_is_the_regression_of_returns(world):
    """Tabular least squares of returns, weighted by probability, is V."""
    head = direct_advantage(*world.data, gamma=GAMMA, ridge=Ridge(1e-9, float("inf")), weights=world.tree.weights)
    assert_close(head.values(world.states), world.tree.pack(world.exact.values), rtol=0, atol=1e-5)
    assert head.advantages(world.states, world.actions).abs().max() == 0


def test_any_head_has_zero_mean_under_the_policy(world):
    """sum over a of pi(a|s) A(s, a) = 0 for random weights, where an action is banned as well."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    head = DirectHead(weights, torch.zeros(5, dtype=torch.float64), 0.0)
    vectors = torch.randn(K, 4, generator=generator, dtype=torch.float64)
    logits = torch.randn(7, K, generator=generator, dtype=torch.float64)
    logits[2, 1] = float("-inf")
    logprobs, states = logits.log_softmax(1), torch.randn(7, 5, generator=generator, dtype=torch.float64)
    each = torch.stack(
        [head.advantages(states, centred_vectors(vectors, logprobs, torch.full((7,), a))) for a in range(K)], 1
    )
    assert each.abs().max() > 0.1
    assert_close((logprobs.exp() * each).sum(1), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)


def test_it_minimises_its_ridge_objective(world):
    """Against gradient descent's condition: the gradient of the stated objective is 0 at the solution."""
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(len(world.returns), 6, generator=generator, dtype=torch.float64)
    actions = torch.randn(len(world.returns), 3, generator=generator, dtype=torch.float64)
    weights, ridge = torch.rand(len(world.returns), generator=generator, dtype=torch.float64) + 0.5, Ridge(0.7, 2.0)
    count = world.tree.num_actions
    head = direct_advantage(states, actions, world.returns, count, gamma=GAMMA, ridge=ridge, weights=weights)
    matrix, vector = head.advantage.clone().requires_grad_(), head.value.clone().requires_grad_()
    each = ((states @ matrix) * actions).sum(1)
    later = torch.stack([
        sum(GAMMA ** (u - t) * row[u] for u in range(t, len(row)))
        for row in each.split(count.tolist())
        for t in range(len(row))
    ])  # fmt: skip
    residual = world.returns - (weights * world.returns).sum() / weights.sum() - states @ vector - later
    loss = (weights * residual**2).sum() + ridge.value * vector.square().sum() + ridge.advantage * matrix.square().sum()
    loss.backward()
    assert matrix.grad.abs().max() < 1e-9
    assert vector.grad.abs().max() < 1e-9


def test_the_ridge_is_chosen_on_groups_left_out():
    """Returns of pure noise want the largest ridge; returns that a state decides, the smallest."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(120, 8, generator=generator, dtype=torch.float64)
    count, group = torch.ones(120, dtype=torch.int64), torch.arange(120) // 3
    ridges = [Ridge(value, float("inf")) for value in (0.01, 1.0, 1000.0)]
    noise = torch.randn(120, generator=generator, dtype=torch.float64)
    for returns, best in ((noise, 1000.0), (states[:, 0], 0.01)):
        found = chosen_ridge(states, states, returns, count, group, gamma=1.0, ridges=ridges)
        assert found.value == best


def test_the_ensembles_head_gives_the_mean_of_the_estimates(world):
    heads = [direct_advantage(*world.data, gamma=GAMMA, ridge=Ridge(r, r)) for r in (0.1, 1.0, 10.0)]
    mean = mean_head(heads)
    for name, arguments in (("advantages", (world.states, world.actions)), ("values", (world.states,))):
        expected = torch.stack([getattr(head, name)(*arguments) for head in heads]).mean(0)
        assert_close(getattr(mean, name)(*arguments), expected, rtol=0, atol=1e-12)


def test_shapes_and_numbers_that_contradict_are_refused(world):
    states, actions, returns, count = world.data
    with pytest.raises(RecordError, match="returns"):
        direct_advantage(states, actions, returns[1:], count, gamma=1.0, ridge=TINY)
    with pytest.raises(RecordError, match="states and"):
        direct_advantage(states[1:], actions, returns, count, gamma=1.0, ridge=TINY)
    with pytest.raises(RecordError, match="nan"):
        direct_advantage(states, actions, returns * float("nan"), count, gamma=1.0, ridge=TINY)
