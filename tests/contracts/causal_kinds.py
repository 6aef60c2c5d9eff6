"""Causal language models: one forward a token, over exactly the tokens before it."""

from __future__ import annotations

import torch
from kinds import Kind, draws, trunk_of

from upslope.records import Prompt, Rollout


def _rows(policy) -> list[Rollout]:
    """Three prompts of 3, 9 and 1 tokens, with 2, 3 and 1 rows of 1 to 7 actions; one row decides in two turns."""
    draw = draws(policy, 5)
    rollouts = []
    for group, (length, counts) in enumerate([(3, (5, 2)), (9, (1, 7, 3)), (1, (4,))]):
        prompt = Prompt(id=group, content="x", tokens=draw(length))
        for sample, count in enumerate(counts):
            rollouts.append(_row(prompt, group, sample, draw(count), ended=(group + sample) % 2 == 0))
    first = rollouts[0]
    two_turns = (*first.positions[:2], *(p + 3 for p in first.positions[2:]))
    tokens = (*first.tokens[:5], *draw(3), *first.tokens[5:])
    rollouts[0] = first.replace(tokens=tokens, positions=two_turns)
    return rollouts


def _row(prompt, group, sample, actions, *, ended):
    start = len(prompt.tokens) - 1
    return Rollout(
        prompt=prompt,
        group=group,
        sample=sample,
        tokens=prompt.tokens + actions,
        actions=actions,
        positions=tuple(range(start, start + len(actions))),
        engine_logprobs=(-1.0,) * len(actions),
        text="",
        stop_reason="eos" if ended else "length",
    )


@torch.no_grad()
def _logits(policy, rollout):
    model = policy.model
    return torch.cat([model(torch.tensor([rollout.tokens[: at + 1]])).logits[:, -1] for at in rollout.positions])


@torch.no_grad()
def _hidden(policy, rollout):
    trunk, ends = trunk_of(policy), (*rollout.positions, len(rollout.tokens) - 1)
    return torch.cat([trunk(torch.tensor([rollout.tokens[: at + 1]])).last_hidden_state[:, -1] for at in ends])


def _ended(rollout, token):
    return rollout.replace(actions=(*rollout.actions[:-1], token), tokens=(*rollout.tokens[:-1], token))


def _causal(name, *noisy):
    return Kind(
        name=name,
        kind="causal",
        rows=_rows,
        logits=_logits,
        hidden=_hidden,
        ended=_ended,
        noisy=noisy,
        ways=({"shares_prompts": True}, {"shares_prompts": False}),
    )


CAUSAL = {
    "tiny-llama": _causal("tiny-llama", "attention_dropout"),
    "tiny-gpt2": _causal("tiny-gpt2", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
}
