"""What a decoder-only Transformers model is made of, as far as decoding needs to know.

A model is recognised by its parts, not by its name, and is believed only once a decoder built from the parts has given
the model's own logits (see probe.proven_decoder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from upslope.kernels.attention import Heads


class UnknownArchitecture(Exception):  # noqa: N818 - no error: the slower way is taken
    """A part that the decoder does not know; one clause that names it."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm over the features, with the module's weights as they are at the moment of the call.

    Raises: UnknownArchitecture for a module that holds others, such as an adapter's.
    """

    module: Any

    def __post_init__(self) -> None:
        if any(True for _ in self.module.children()):
            raise UnknownArchitecture(f"{type(self.module).__name__} is no plain norm")

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

    @property
    def modules(self) -> Iterator[nn.Module]:
        """Every module that is read."""
        whole = (self.embedding, self.position_embedding, self.rotary, self.norm.module, self.head)
        yield from (module for module in whole if module is not None)
        for block in self.blocks:
            yield from (*block.qkv, block.out, *block.up, block.down)
            norms = (block.attention_norm, block.query_norm, block.key_norm, block.mlp_norm)
            yield from (norm.module for norm in norms if norm is not None)


def recognise(model: Any) -> Architecture:
    """The parts of a Transformers model (without adapters around it).

    Raises: UnknownArchitecture.
    """
    base = model.base_model
    read = _llama_like if hasattr(base, "layers") else _gpt2_like if hasattr(base, "h") else None
    if read is None:
        raise UnknownArchitecture(f"{type(model).__name__} is neither Llama-like nor GPT-2-like")
    try:
        architecture = read(model, base)
    except AttributeError as error:
        raise UnknownArchitecture(f"{type(model).__name__} is built otherwise: {error}") from error
    known = {id(parameter) for module in architecture.modules for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            raise UnknownArchitecture(f"{name} plays a part that the decoder does not know")
    if type(architecture.embedding) is not nn.Embedding:
        raise UnknownArchitecture(f"{type(architecture.embedding).__name__} is no plain embedding")
    return architecture


def _llama_like(model: Any, base: Any) -> Architecture:
    """Llama, Mistral, Qwen, SmolLM and their kin: rotary positions, RMS norms, a gated MLP."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        raise UnknownArchitecture(f"rotary positions of type {rope['rope_type']!r} depend on the row's length")
    first = base.layers[0].self_attn
    shapes = {(layer.self_attn.head_dim, layer.self_attn.scaling) for layer in base.layers}
    if len(shapes) > 1:
        raise UnknownArchitecture("its layers have heads of several kinds")
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
    """How many tokens a layer sees, where that is limited. A config may name a window that its model ignores."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] not in ("full_attention", "sliding_attention"):
        raise UnknownArchitecture(f"its layers attend by {kinds[index]!r}")
    if window is None or (kinds is not None and kinds[index] == "full_attention"):
        return None
    if kinds is None and config.model_type not in ("mistral", "starcoder2"):
        raise UnknownArchitecture("its config names a sliding window without saying for which layers")
    return int(window)


def _gpt2_like(model: Any, base: Any) -> Architecture:
    """GPT-2 and its kin: learned positions, layer norms, one fused projection, a plain MLP."""
    config = model.config
    dim = config.n_embd // config.n_head
    scales = {layer.attn.scaling for layer in base.h}
    if len(scales) > 1:
        raise UnknownArchitecture("its layers scale their scores differently")
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
        heads=Heads(config.n_head, config.n_head, dim, scales.pop()),
        activation=base.h[0].mlp.act,
    )


def weights_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """(weight [N, K], bias [N]) of a linear module as it acts now, a LoRA adapter's part added.

    Raises: UnknownArchitecture for a module that is no plain linear map.
    """
    if hasattr(module, "get_base_layer"):
        return _adapted(module)
    if isinstance(module, Conv1D):
        return module.weight.detach().t(), module.bias
    if isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter:
        return module.weight.detach(), module.bias
    raise UnknownArchitecture(f"{type(module).__name__} is no plain linear layer")


def _adapted(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear module with LoRA adapters, those that act at present added."""
    lora = hasattr(module, "lora_A") and hasattr(module, "get_delta_weight")
    if not lora or module.lora_variant or any(module.lora_bias.values()):
        raise UnknownArchitecture(f"{type(module).__name__} adapts by more than a plain low-rank sum")
    base = module.get_base_layer()
    weight, bias = weights_of(base)
    if module.merged or module.disable_adapters:
        return weight, bias
    for adapter in module.active_adapters:
        if adapter in module.lora_A:
            delta = module.get_delta_weight(adapter)
            delta = delta.t() if isinstance(base, Conv1D) else delta
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + delta
    return weight, bias
