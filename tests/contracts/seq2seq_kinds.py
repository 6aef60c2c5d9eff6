"""Encoder-decoders: one forward a token, over the whole source and exactly what the decoder has read before it."""

from __future__ import annotations

import torch
from kinds import Kind, draws, trunk_of

from upslope.records import Prompt, Rollout

START = {"tiny-t5": 0, "tiny-bart": 1}


def _rows_after(start):
    def rows(policy) -> list[Rollout]:
        """Three sources of 3, 9 and 1 tokens, with 2, 3 and 1 rows of 1 to 7 actions."""
        draw = draws(policy, 5)
        rollouts = []
        for group, (length, counts) in enumerate([(3, (5, 2)), (9, (1, 7, 3)), (1, (4,))]):
            prompt = Prompt(id=group, content="x", tokens=draw(length))
            for sample, count in enumerate(counts):
                actions = draw(count)
                rollout = Rollout(
                    prompt=prompt,
                    group=group,
                    sample=sample,
                    tokens=(start, *actions),
                    actions=actions,
                    positions=tuple(range(count)),
                    engine_logprobs=(-1.0,) * count,
                    text="",
                    stop_reason="eos" if (group + sample) % 2 == 0 else "length",
                    source=prompt.tokens,
                )
                rollouts.append(rollout)
        return rollouts

    return rows


@torch.no_grad()
def _logits(policy, rollout):
    source = torch.tensor([rollout.source])
    prefixes = [torch.tensor([rollout.tokens[: at + 1]]) for at in rollout.positions]
    return torch.cat([policy.model(input_ids=source, decoder_input_ids=read).logits[:, -1] for read in prefixes])


@torch.no_grad()
def _hidden(policy, rollout):
    trunk = trunk_of(policy)
    source = torch.tensor([rollout.source])
    states = []
    for at in (*rollout.positions, len(rollout.tokens) - 1):
        read = torch.tensor([rollout.tokens[: at + 1]])
        output = trunk(input_ids=source, decoder_input_ids=read, output_hidden_states=True)
        states.append(output.decoder_hidden_states[-1][:, -1])
    return torch.cat(states)


def _ended(rollout, token):
    return rollout.replace(actions=(*rollout.actions[:-1], token), tokens=(*rollout.tokens[:-1], token))


def _seq2seq(name, sharpness, *noisy):
    return Kind(
        name=name,
        kind="seq2seq",
        rows=_rows_after(START[name]),
        logits=_logits,
        hidden=_hidden,
        ended=_ended,
        noisy=noisy,
        sharpness=sharpness,
    )


SEQ2SEQ = {
    "tiny-t5": _seq2seq("tiny-t5", 1.5, "dropout_rate"),
    "tiny-bart": _seq2seq(
        "tiny-bart", 4.0, "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"
    ),
}
