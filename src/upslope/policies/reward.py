"""The reward policy: a scalar score of a prompt and its completion, by an encoder or decoder with one output."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.estimators.scan import promote
from upslope.policies.classifier import ClassifierPolicy
from upslope.records import Batch, Prompt, Rollout

LABELS = ("reward",)
"""The one output's name in the saved model's config."""


class RewardPolicy(ClassifierPolicy):
    """Scores completions by any AutoModelForSequenceClassification-like model with one label.

    What is read: a chat and its answer through the tokenizer's template, where it has one; else, of a decoder, prompt
    and completion as one text with the end of sequence after it, and of an encoder the two as a pair of texts. A
    decoder's score stands at the last token that is no padding, as Transformers has it.
    """

    def demonstration(self, prompt: Prompt, completion: Any) -> Rollout:
        """The prompt with this completion as the row that is scored, whatever its length; its one action says nothing.

        Raises: ModelError for a token beyond the model's vocabulary.
        """
        encoded = Prompt(prompt.id, prompt.content, prompt.columns, self._ids(prompt, str(completion)))
        return self.blank(self._known(encoded)).replace(text=str(completion))

    def cuts(self, prompt: Prompt) -> bool:  # noqa: ARG002
        """Never: a row that is too long is left out, for a cut answer would be judged for what it does not say."""
        return False

    def scores(self, batch: Batch) -> Tensor:
        """The score [B] of each row, differentiable, in float32 at least."""
        (logits,) = promote(self.logits(batch))
        return logits[:, 0]

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
