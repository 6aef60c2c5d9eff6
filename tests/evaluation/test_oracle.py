"""The oracle against sums written out by hand: products of softmaxes, loops over sequences, finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from upslope.errors import RecordError
from upslope.evaluation.oracle import (
    action_rewards,
    enumerate_sequences,
    language_model_logits,
    num_prefixes,
    policy_gradient,
    policy_gradient_theorem,
    rollouts,
    score_rewards,
    solve,
    tabular_logits,
)
from upslope.records import Prompt, collate

K, HORIZON, END = 3, 3, 2


def table(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_prefixes(K, horizon=HORIZON), K, generator=generator, dtype=torch.float64)


def all_sequences(end: int | None) -> list[tuple[int, ...]]:
    """Every sequence, found by filtering all strings."""
    found = []
    for length in range(1, HORIZON + 1):
        for sequence in itertools.product(range(K), repeat=length):
            ended = end is not None and sequence[-1] == end
            if (ended or length == HORIZON) and end not in sequence[:-1]:
                found.append(sequence)
    return found


def row_of(prefix: tuple[int, ...]) -> int:
    """The table row of a prefix: its place among all prefixes by length, then lexicographically."""
    order = [p for length in range(HORIZON) for p in itertools.product(range(K), repeat=length)]
    return order.index(prefix)


def probability(logits: torch.Tensor, sequence: tuple[int, ...]) -> float:
    total = 1.0
    for t, symbol in enumerate(sequence):
        row = logits[row_of(sequence[:t])].tolist()
        total *= math.exp(row[symbol]) / sum(math.exp(x) for x in row)
    return total


def pay(prefix: tuple[int, ...], action: int) -> float:
    return math.sin(1 + action + 2 * sum(prefix) + 3 * len(prefix))


@pytest.mark.parametrize("end", [None, END])
def test_every_sequence_stands_once_with_its_probability(end):
    logits = table()
    tree = enumerate_sequences(tabular_logits(logits), horizon=HORIZON, end=end)
    assert sorted(tree.sequences) == sorted(all_sequences(end))
    expected = [probability(logits, sequence) for sequence in tree.sequences]
    assert_close(tree.probabilities, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    assert math.isclose(sum(expected), 1.0, abs_tol=1e-12)
    assert tree.terminated.tolist() == [sequence[-1] == end for sequence in tree.sequences]


@pytest.mark.parametrize("end", [None, END])
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_values_and_occupancies_are_the_sums_over_sequences(end, gamma):
    logits = table()
    tree = enumerate_sequences(tabular_logits(logits), horizon=HORIZON, end=end)
    exact = solve(tree, action_rewards(tree, pay), gamma=gamma)
    weighted = [(sequence, probability(logits, sequence)) for sequence in all_sequences(end)]

    def worth(sequence, start):
        return sum(gamma ** (t - start) * pay(sequence[:t], sequence[t]) for t in range(start, len(sequence)))

    assert_close(exact.objective.item(), sum(p * worth(s, 0) for s, p in weighted), rtol=0, atol=1e-12)
    for state, prefix in enumerate(tree.prefixes):
        length = len(prefix)
        through = [(s, p) for s, p in weighted if s[:length] == prefix and len(s) > length]
        reach = sum(p for _, p in through)
        value = sum(p * worth(s, length) for s, p in through) / reach
        assert_close(exact.occupancy[state].item(), gamma**length * reach, rtol=0, atol=1e-12)
        assert_close(exact.values[state].item(), value, rtol=0, atol=1e-12)
        for action in range(K):
            chosen = [(s, p) for s, p in through if s[length] == action]
            q = sum(p * worth(s, length) for s, p in chosen) / sum(p for _, p in chosen)
            assert_close(exact.action_values[state, action].item(), q, rtol=0, atol=1e-12)
            assert_close(exact.advantages[state, action].item(), q - value, rtol=0, atol=1e-12)


def test_a_score_is_paid_at_the_last_action():
    logits = table()
    tree = enumerate_sequences(tabular_logits(logits), horizon=HORIZON, end=END)
    rewards = score_rewards(tree, lambda sequence: float(sum(sequence)))
    packed = tree.pack(rewards).split(tree.num_actions.tolist())
    for sequence, paid in zip(tree.sequences, packed, strict=True):
        assert paid.tolist() == [0.0] * (len(sequence) - 1) + [float(sum(sequence))]
    expected = sum(probability(logits, s) * sum(s) for s in all_sequences(END))
    assert_close(solve(tree, rewards, gamma=1.0).objective.item(), expected, rtol=0, atol=1e-12)


def test_policy_gradient_by_autograd_by_the_theorem_and_by_finite_differences():
    logits = table().requires_grad_()

    def objective(parameters):
        tree = enumerate_sequences(tabular_logits(parameters), horizon=HORIZON, end=END)
        return tree, solve(tree, action_rewards(tree, pay), gamma=0.9)

    tree, exact = objective(logits)
    (autograd,) = policy_gradient(exact, [logits])
    (theorem,) = policy_gradient_theorem(tree, exact, [logits])
    numeric = torch.zeros_like(logits)
    for index in range(logits.numel()):
        step = torch.zeros_like(logits).view(-1)
        step[index] = 1e-5
        up, down = (objective(logits.detach() + sign * step.view_as(logits))[1].objective for sign in (1, -1))
        numeric.view(-1)[index] = (up - down) / 2e-5
    assert_close(autograd, theorem, rtol=0, atol=1e-13)
    assert_close(autograd, numeric, rtol=0, atol=1e-9)
    assert autograd.abs().max() > 0.01


def test_banned_choices_are_in_no_sequence_and_harm_no_gradient():
    logits = table()
    logits[0, 1] = -torch.inf
    logits.requires_grad_()
    tree = enumerate_sequences(tabular_logits(logits), horizon=HORIZON, end=END)
    assert sorted(tree.sequences) == sorted(s for s in all_sequences(END) if s[0] != 1)
    assert_close(tree.probabilities.sum().item(), 1.0, rtol=0, atol=1e-12)
    (gradient,) = policy_gradient(solve(tree, action_rewards(tree, pay), gamma=1.0), [logits])
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0


def test_a_language_model_restricted_to_a_few_tokens():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=9)
    model: nn.Module = GPT2LMHeadModel(config).double().eval()
    token_ids, prompt = (5, 7, 9), (3, 1)
    tree = enumerate_sequences(language_model_logits(model, prompt, token_ids), horizon=3, end=2)
    for sequence, actual in zip(tree.sequences, tree.probabilities.tolist(), strict=True):
        ids, expected = list(prompt), 1.0
        for symbol in sequence:
            logits = model(torch.tensor([ids])).logits[0, -1]
            chosen = [logits[token].item() for token in token_ids]
            expected *= math.exp(chosen[symbol]) / sum(map(math.exp, chosen))
            ids.append(token_ids[symbol])
        assert_close(actual, expected, rtol=0, atol=1e-12)


def test_rollouts_collate_to_the_packed_sequences():
    tree = enumerate_sequences(tabular_logits(table()), horizon=HORIZON, end=END)
    rewards = action_rewards(tree, pay)
    rows = rollouts(tree, rewards, prompt=Prompt(id=4, content="", tokens=(11, 12)), token_ids=(5, 7, 9))
    batch, dropped = collate(rows)
    assert dropped == 0
    assert batch.actions.tolist() == [(5, 7, 9)[symbol] for symbol in tree.actions.tolist()]
    assert batch.num_actions.tolist() == tree.num_actions.tolist()
    assert batch.terminated.tolist() == tree.terminated.tolist()
    assert_close(batch.rewards, tree.pack(rewards).float())
    assert_close(batch.engine_logprobs, tree.pack(tree.logprobs).float())
    tokens = batch.tokens.split(batch.row_lengths.tolist())
    for row, actions, positions in zip(
        tokens, batch.split_rows(batch.actions), batch.split_rows(batch.positions), strict=True
    ):
        assert row[positions + 1].tolist() == actions.tolist(), "an action is the token after the one that decided it"


def test_what_cannot_be_enumerated_is_refused():
    with pytest.raises(RecordError, match="more than"):
        enumerate_sequences(lambda prefixes: torch.zeros(len(prefixes), 100), horizon=4, end=None)
    with pytest.raises(RecordError, match="horizon"):
        enumerate_sequences(lambda prefixes: torch.zeros(len(prefixes), 2), horizon=0, end=None)
    tree = enumerate_sequences(tabular_logits(table()), horizon=1, end=None)
    with pytest.raises(RecordError, match="prompt 3"):
        rollouts(tree, score_rewards(tree, len), prompt=Prompt(id=3, content=""))
