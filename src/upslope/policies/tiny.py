"""Random tiny models with a character tokenizer, for tests and dry runs: Transformers models made in milliseconds."""

from __future__ import annotations

import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TINY_NAMES = ("tiny-llama", "tiny-gpt2")

_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character; <pad>, <eos> and <unk> are 0, 1 and 2."""
    characters = [*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def tiny_model(
    name: str, *, dtype: torch.dtype = torch.float32, **overrides: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A two-layer 64-dimensional Llama-like or GPT-2-like model under torch's current seed, and its tokenizer.

    overrides replace settings of the Transformers config, dropout for example.
    """
    tokenizer = character_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    if name == "tiny-llama":
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**{**shape, **heads, **ids, **overrides}))
    else:
        shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
        model = GPT2LMHeadModel(GPT2Config(**{**shape, **ids, **overrides}))
    return model.to(dtype), tokenizer
