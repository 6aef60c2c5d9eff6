"""A decoder is believed when it gives the model's own logits: of prompts first, then token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.engines.architecture import Architecture, UnknownArchitecture, recognise
from upslope.engines.decoder import Decoder
from upslope.engines.paged import PagedForward
from upslope.engines.rows import Row
from upslope.kernels.attention import PAGE
from upslope.kernels.linear import choose_kernel
from upslope.policies.causal import CausalPolicy
from upslope.records import Prompt

_EXACT, _HALF = 1e-3, 0.2  # of the logits' spread, for weights in float32 and more, and for less
_STEPS = 3
_FEW = 64  # tokens; a longer window than this is not tried out


def proven_decoder(policy: CausalPolicy, kernels: str) -> tuple[Decoder, str]:
    """A loaded decoder of the policy's model, in evaluation mode, whose parts gave the logits of its own forward.

    With it comes why its kernel is a slower one, where it is; see choose_kernel. The parts are tried out with PyTorch's
    products, which are exact and need no copy; the kernel is proven by itself (kernels.proof).
    Raises: UnknownArchitecture when there is none; KernelError when the kernels asked for cannot be had.
    """
    model = policy.model.get_base_model() if hasattr(policy.model, "disable_adapter") else policy.model
    architecture = recognise(model)
    weight = architecture.embedding.weight
    half = weight.dtype if weight.dtype.itemsize < 4 else None
    kernel, slower = choose_kernel(kernels, device=weight.device, dtype=policy.autocast or weight.dtype)
    try:
        gap = _gap(policy, architecture, half)
    except UnknownArchitecture:
        raise
    except Exception as error:  # whatever fails here, fails because the parts act otherwise than was thought
        reason = f"{type(model).__name__} acts otherwise than its parts: {type(error).__name__}: {error}"
        raise UnknownArchitecture(reason) from error
    if not gap <= (_EXACT if half is None else _HALF):
        raise UnknownArchitecture(
            f"{type(model).__name__} computes something else than its parts do (off by {gap:.2g})"
        )
    decoder = Decoder(architecture, kernel, dtype=policy.autocast or half)
    decoder.load()
    return decoder, slower


def _gap(policy: CausalPolicy, architecture: Architecture, half: torch.dtype | None) -> float:
    """The largest difference of a logit, relative to the logits' spread, over two prompts and a few tokens after."""
    windows = [block.window for block in architecture.blocks if block.window is not None and block.window <= _FEW]
    lengths = (3, max([PAGE + 3, *(window + 2 for window in windows)]))
    vocabulary = architecture.embedding.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(vocabulary, (length + _STEPS,), generator=generator).tolist() for length in lengths]
    rows = [Row(Prompt(id=i, content="", tokens=tuple(t[:-_STEPS])), group=i, sample=0) for i, t in enumerate(texts)]
    decoder = Decoder(architecture, "torch", dtype=half)
    decoder.load()
    forward = PagedForward(decoder, max_rows=len(rows), cache_bytes=2**30)
    forward.start(rows, max_new_tokens=_STEPS)
    first = forward.admit(rows)[1]
    assert first is not None
    later = [torch.tensor([text[-step] for text in texts], device=policy.device) for step in range(_STEPS, 0, -1)]
    own = torch.stack([first, *(forward.step(tokens) for tokens in later)], 1)
    return max(_difference(x, _reference(policy, text)) for x, text in zip(own, texts, strict=True))


def _reference(policy: CausalPolicy, text: list[int]) -> Tensor:
    logits: Tensor = policy.model(input_ids=torch.tensor([text], device=policy.device), use_cache=False).logits
    return logits[0, -_STEPS - 1 :]


def _difference(own: Tensor, reference: Tensor) -> float:
    dtype = torch.promote_types(reference.dtype, torch.float32)
    return float((own.to(dtype) - reference.to(dtype)).abs().max() / reference.to(dtype).std())
