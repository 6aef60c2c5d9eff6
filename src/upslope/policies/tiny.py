"""Random tiny models with a character tokenizer, for tests and dry runs: Transformers models made in milliseconds."""

from __future__ import annotations

import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
)

TINY_NAMES = ("tiny-llama", "tiny-gpt2", "tiny-bert", "tiny-t5", "tiny-bart")

_BART = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
_BART_IDS = {"decoder_start_token_id": 1, "forced_bos_token_id": None, "forced_eos_token_id": None}

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
    name: str, *, dtype: torch.dtype = torch.float32, auto: Any = AutoModelForCausalLM, **overrides: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A two-layer 64-dimensional model of one of TINY_NAMES under torch's current seed, and its tokenizer.

    auto is Transformers' class of what the model is for. overrides replace settings of the Transformers config, dropout
    for example.
    """
    tokenizer = character_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    model: PreTrainedModel = auto.from_config(_config(name, ids | overrides))
    return model.to(dtype).eval(), tokenizer


def _config(name: str, settings: dict[str, Any]) -> PretrainedConfig:
    if name == "tiny-gpt2":
        return GPT2Config(**{"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, **settings})
    if name == "tiny-t5":
        shape = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        return T5Config(**{**shape, **settings})
    if name == "tiny-bart":
        sides = {f"{side}_{name}": count for side in ("encoder", "decoder") for name, count in _BART.items()}
        return BartConfig(**{"d_model": 64, "max_position_embeddings": 256, **sides, **_BART_IDS, **settings})
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
    if name == "tiny-bert":
        return BertConfig(**{**shape, "num_attention_heads": 4, **settings})
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return LlamaConfig(**{**shape, **heads, **settings})
