"""Classifiers and taggers: a plain forward of one row, read at the places that the head's definition names."""

from __future__ import annotations

import torch
from kinds import Kind, draws, trunk_of

from upslope.records import Prompt, Rollout

CLASSES = ("bad", "so-so", "good", "great", "none")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def _prompts(policy):
    draw = draws(policy, 5)
    return [Prompt(id=group, content="x", tokens=draw(length)) for group, length in enumerate((3, 9, 1))]


def _row(prompt, sample, positions, actions):
    return Rollout(
        prompt=prompt,
        group=prompt.id,
        sample=sample,
        tokens=prompt.tokens,
        actions=actions,
        positions=positions,
        engine_logprobs=(-1.0,) * len(actions),
        text="",
        stop_reason="action",
    )


def _class_rows(policy) -> list[Rollout]:
    """Three texts of 3, 9 and 1 tokens with 2, 3 and 1 answers."""
    prompts = _prompts(policy)
    answers = ((0, (1, 4)), (1, (0, 2, 2)), (2, (3,)))
    return [
        _row(prompts[text], sample, (len(prompts[text].tokens) - 1,), (action,))
        for text, actions in answers
        for sample, action in enumerate(actions)
    ]


def _tag_rows(policy) -> list[Rollout]:
    """Three texts of 3, 9 and 1 tokens, some of which begin a word, with legal tags."""
    prompts, places = _prompts(policy), ((0, 2), (1, 2, 5, 8), (0,))
    tags = ((0, ((1, 2), (0, 3))), (1, ((0, 1, 2, 2), (3, 4, 4, 1), (3, 1, 2, 0))), (2, ((3,),)))
    return [
        _row(prompts[text], sample, places[text], actions)
        for text, choices in tags
        for sample, actions in enumerate(choices)
    ]


@torch.no_grad()
def _encoder_class_logits(policy, rollout):
    return policy.model(torch.tensor([rollout.tokens])).logits


@torch.no_grad()
def _decoder_class_logits(policy, rollout):
    """The head on the last token's state: Transformers' own pooling errs where that token is the padding's."""
    model = policy.model
    return model.score(model.base_model(torch.tensor([rollout.tokens])).last_hidden_state[:, -1])


@torch.no_grad()
def _tag_logits(policy, rollout):
    """Logits at the words' places, -inf for an I-X that continues nothing."""
    logits = policy.model(torch.tensor([rollout.tokens])).logits[0, list(rollout.positions)]
    before = "O"
    for place, action in enumerate(rollout.actions):
        for label, tag in enumerate(TAGS):
            if tag[0] == "I" and (before == "O" or before[1:] != tag[1:]):
                logits[place, label] = float("-inf")
        before = TAGS[action]
    return logits


@torch.no_grad()
def _states(policy, rollout):
    return trunk_of(policy)(torch.tensor([rollout.tokens])).last_hidden_state[0]


def _first_state(policy, rollout):
    return _states(policy, rollout)[[0, 0]]


def _last_state(policy, rollout):
    return _states(policy, rollout)[[-1, -1]]


def _word_states(policy, rollout):
    return _states(policy, rollout)[[*rollout.positions, -1]]


def _ended(rollout, token):
    """A text may hold any token: what is at its end must be read all the same."""
    return rollout.replace(tokens=(*rollout.tokens[:-1], token))


def _classifier(name, logits, hidden, *noisy):
    return Kind(
        name=name,
        kind="classifier",
        rows=_class_rows,
        logits=logits,
        hidden=hidden,
        ended=_ended,
        noisy=noisy,
        labels=CLASSES,
        computes_equal_rows_once=True,
    )


def _tagger(name, *noisy):
    return Kind(
        name=name,
        kind="tagger",
        rows=_tag_rows,
        logits=_tag_logits,
        hidden=_word_states,
        ended=_ended,
        noisy=noisy,
        labels=TAGS,
        computes_equal_rows_once=True,
    )


_BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_GPT2 = ("attn_pdrop", "embd_pdrop", "resid_pdrop")

LABELLED = {
    "classifier-bert": _classifier("tiny-bert", _encoder_class_logits, _first_state, *_BERT),
    "classifier-llama": _classifier("tiny-llama", _decoder_class_logits, _last_state, "attention_dropout"),
    "classifier-gpt2": _classifier("tiny-gpt2", _decoder_class_logits, _last_state, *_GPT2),
    "tagger-bert": _tagger("tiny-bert", *_BERT),
    "tagger-llama": _tagger("tiny-llama", "attention_dropout"),
}
