"""The reward policy: a scalar score of a prompt and its completion, by an encoder or decoder with one output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import ModelError
from upslope.estimators.scan import promote, row_sum
from upslope.policies.classifier import ClassifierPolicy
from upslope.policies.text import encode
from upslope.records import Batch, Prompt, Rollout

LABELS = ("reward",)
"""The one output's name in the saved model's config."""
_OFFSET = "token_reward_offset"  # in the config of a model that judges token by token


class RewardPolicy(ClassifierPolicy):
    """Scores completions by any AutoModelForSequenceClassification-like model with one label.

    What is read: a chat and its answer through the tokenizer's template, where it has one; else, of a decoder, prompt
    and completion as one text with the end of sequence after it, and of an encoder the two as a pair of texts. A
    decoder's score stands at the last token that is no padding, as Transformers has it.

    per_token: of a decoder that judges token by token, which its config says, the head is read at every token of the
    completion and its end, as a causal policy writes them; a row's score is the sum. offset, a scalar, is added each
    time.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **held: Any) -> None:
        super().__init__(model, tokenizer, **held)
        offset = getattr(self._base.config, _OFFSET, None)
        self.per_token = offset is not None
        self.offset = torch.tensor(offset or 0.0, device=self.device)

    def judge_tokens(self) -> None:
        """Judge token by token from now on. Raises: ModelError for an encoder, which sees what is yet to come."""
        if not self._reads_last:
            raise ModelError(f"{type(self._base).__name__} is no decoder, so it cannot judge token by token")
        self.per_token = True

    def demonstration(self, prompt: Prompt, completion: Any) -> Rollout:
        """The prompt with this completion as the row that is scored, whatever its length; its actions say nothing.

        Raises: ModelError for a token beyond the model's vocabulary.
        """
        text = str(completion)
        if not self.per_token:
            encoded = Prompt(prompt.id, prompt.content, prompt.columns, self._ids(prompt, text))
            return self.blank(self._known(encoded)).replace(text=text)
        before = encode(self.tokenizer, prompt).tokens
        ids = (*before, *self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id)
        row = self.blank(self._known(Prompt(prompt.id, prompt.content, prompt.columns, ids))).replace(text=text)
        return _at(row, range(len(before), len(ids)))

    def written(self, row: Rollout) -> Rollout:
        """A causal policy's row of the same tokens as the row that is scored: each action is read where it stands."""
        return _at(row, [place + 1 for place in row.positions])

    def cuts(self, prompt: Prompt) -> bool:  # noqa: ARG002
        """Never: a row that is too long is left out, for a cut answer would be judged for what it does not say."""
        return False

    def action_scores(self, batch: Batch) -> Tensor:
        """The score [M] of each action: of a row, or of a token; differentiable, in float32 at least."""
        (logits,) = promote(self.logits(batch))
        return logits[:, 0] + self.offset

    def scores(self, batch: Batch) -> Tensor:
        """The score [B] of each row; see `action_scores`."""
        return row_sum(self.action_scores(batch), batch.num_actions)

    def save(self, folder: Path) -> None:
        """As other policies; the config says where every token is judged."""
        if self.per_token:
            setattr(self._base.config, _OFFSET, float(self.offset.detach()))
        super().save(folder)

    def _ids(self, prompt: Prompt, completion: str) -> tuple[int, ...]:
        tokenizer, pad = self.tokenizer, self._base.config.get_text_config().pad_token_id
        if not isinstance(prompt.content, str) and tokenizer.chat_template is not None:
            chat = [*map(dict, prompt.content), {"role": "assistant", "content": completion}]
            ids = list(tokenizer.apply_chat_template(chat, return_dict=False))
        elif not self._reads_last:
            return tuple(tokenizer(prompt.text, completion, verbose=False)["input_ids"])
        else:
            ids = list(tokenizer(prompt.text + completion, verbose=False)["input_ids"])
            end = tokenizer.eos_token_id
            ids += [] if end is None or ids[-1:] == [end] else [end]
        while self._reads_last and len(ids) > 1 and ids[-1] == pad:  # Transformers reads before them
            ids.pop()
        return tuple(int(i) for i in ids)


def pad_apart(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a new head a padding token that no text holds: Transformers reads a decoder at the last token that is none,
    which is the wrong one where a text ends in its padding, as with pad == EOS (transformers#35352)."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _at(row: Rollout, positions: Sequence[int]) -> Rollout:
    """The row with its scores read at these positions."""
    count = len(positions)
    return row.replace(actions=(0,) * count, positions=tuple(positions), engine_logprobs=(0.0,) * count)
