"""What a decoder-only Transformers model is made of, as far as decoding needs to know.

A model is recognised by its parts, not by its name, and is believed only once a decoder built from the parts has given
the model's own logits (see paged.PagedForward).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from upslope.kernels.attention import Heads


class UnknownArchitecture(Exception):  # noqa: N818 - no error: the slower way is taken
    """A part that the decoder does not know; one clause that names it."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm over the features, with the module's weights as they are at the moment of the call."""

    module: Any

    def __call__(self, x: Tensor) -> Tensor:
        module, shape = self.module, x.shape[-1:]
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(x, shape, module.weight, module.bias, module.eps)
        epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
        return F.rms_norm(x, shape, module.weight, epsilon)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. Modules in a tuple stand side by side: their outputs are queries, keys and values, or gate and up."""

    attention_norm: Norm
    qkv: tuple[nn.Module, ...]
    query_norm: Norm | None
    key_norm: Norm | None
    out: nn.Module
    mlp_norm: Norm
    up: tuple[nn.Module, ...]
    down: nn.Module
    window: int | None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder: embeddings, blocks, last norm and head.

    rotary turns positions into (cos, sin); position_embedding adds learned ones.
    """

    name: str
    embedding: nn.Embedding
    position_embedding: nn.Embedding | None
    rotary: nn.Module | None
    blocks: tuple[Block, ...]
    norm: Norm
    head: nn.Module
    heads: Heads
    activation: Callable[[Tensor], Tensor]


def recognise(model: Any) -> Architecture:
    """The parts of a Transformers model (without adapters around it).

    Raises: UnknownArchitecture.
    """
    base = model.base_model
    try:
        if hasattr(base, "layers"):
            return _llama_like(model, base)
        if hasattr(base, "h"):
            return _gpt2_like(model, base)
    except AttributeError as error:
        raise UnknownArchitecture(f"{type(model).__name__} is built otherwise: {error}") from error
    raise UnknownArchitecture(f"{type(model).__name__} is neither Llama-like nor GPT-2-like")


def _llama_like(model: Any, base: Any) -> Architecture:
    """Llama, Mistral, Qwen, SmolLM and their kin: rotary positions, RMS norms, a gated MLP."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        raise UnknownArchitecture(f"rotary positions of type {rope['rope_type']!r} depend on the row's length")
    first = base.layers[0].self_attn
    blocks = tuple(_llama_block(layer, _window(config, index)) for index, layer in enumerate(base.layers))
    return Architecture(
        name="llama-like",
        embedding=base.embed_tokens,
        position_embedding=None,
        rotary=base.rotary_emb,
        blocks=blocks,
        norm=Norm(base.norm),
        head=model.get_output_embeddings(),
        heads=Heads(config.num_attention_heads, config.num_key_value_heads, first.head_dim, first.scaling),
        activation=base.layers[0].mlp.act_fn,
    )


def _llama_block(layer: Any, window: int | None) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    return Block(
        attention_norm=Norm(layer.input_layernorm),
        qkv=(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=Norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=Norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        out=attention.o_proj,
        mlp_norm=Norm(layer.post_attention_layernorm),
        up=(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj,
        window=window,
    )


def _window(config: Any, index: int) -> int | None:
    """How many tokens a layer sees, where that is limited."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] != "sliding_attention":
        return None
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)


def _gpt2_like(model: Any, base: Any) -> Architecture:
    """GPT-2 and its kin: learned positions, layer norms, one fused projection, a plain MLP."""
    config = model.config
    dim = config.n_embd // config.n_head
    blocks = tuple(
        Block(
            attention_norm=Norm(layer.ln_1),
            qkv=(layer.attn.c_attn,),
            query_norm=None,
            key_norm=None,
            out=layer.attn.c_proj,
            mlp_norm=Norm(layer.ln_2),
            up=(layer.mlp.c_fc,),
            down=layer.mlp.c_proj,
            window=None,
        )
        for layer in base.h
    )
    return Architecture(
        name="gpt2-like",
        embedding=base.wte,
        position_embedding=base.wpe,
        rotary=None,
        blocks=blocks,
        norm=Norm(base.ln_f),
        head=model.get_output_embeddings(),
        heads=Heads(config.n_head, config.n_head, dim, dim**-0.5),
        activation=base.h[0].mlp.act,
    )


def weights_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """(weight [N, K], bias [N]) of a linear module as it acts now, a LoRA adapter's part added.

    Raises: UnknownArchitecture for a module that is no plain linear map.
    """
    adapted: Any = module
    if hasattr(adapted, "get_delta_weight"):
        weight, bias = weights_of(adapted.get_base_layer())
        if adapted.merged or adapted.disable_adapters:
            return weight, bias
        if any(getattr(adapted, "use_dora", {}).values()):
            raise UnknownArchitecture("DoRA adapters are no sum of weights")
        deltas = [adapted.get_delta_weight(adapter) for adapter in adapted.active_adapters if adapter in adapted.lora_A]
        for delta in deltas:
            weight = weight.float() + delta.float()
        return weight, bias
    if isinstance(module, Conv1D):
        return module.weight.detach().t(), module.bias
    if isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter:
        return module.weight.detach(), module.bias
    raise UnknownArchitecture(f"{type(module).__name__} is no plain linear layer")
