"""A decoder is believed when it gives the model's own log-probabilities: prompts first, then token by token."""

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

_EXACT, _HALF = 1e-3, 0.5  # nats, for weights in float32 and more, and for less
_STEPS = 3
_FEW = 64  # tokens; a longer window than this is not tried out


def proven_decoder(policy: CausalPolicy, kernels: str) -> Decoder:
    """A loaded decoder of the policy's model, which gave the log-probabilities of Transformers' own forward.

    Raises: UnknownArchitecture when there is none; KernelError when the kernels asked for cannot be had.
    """
    model = policy.model.get_base_model() if hasattr(policy.model, "disable_adapter") else policy.model
    architecture = recognise(model)
    weight = architecture.embedding.weight
    half = policy.autocast if policy.autocast is not None else (weight.dtype if weight.dtype.itemsize < 4 else None)
    kernel = choose_kernel(kernels, device=weight.device, dtype=weight.dtype if half is None else half)
    decoder = Decoder(architecture, kernel, dtype=half)
    decoder.load()
    tolerance = _EXACT if half is None and kernel != "float16" else _HALF
    training = policy.module.training
    policy.module.eval()
    try:
        gap = _gap(policy, decoder, architecture)
    except Exception as error:  # whatever fails here, fails because the parts act otherwise than was thought
        raise UnknownArchitecture(f"{type(model).__name__} acts otherwise than its parts: {error}") from error
    finally:
        policy.module.train(training)
    if not gap <= tolerance:
        raise UnknownArchitecture(
            f"{type(model).__name__} computes something else than its parts do (by {gap:.2g} nats)"
        )
    return decoder


def _gap(policy: CausalPolicy, decoder: Decoder, architecture: Architecture) -> float:
    """The largest difference of a log-probability over a short and a longer prompt and a few tokens after them."""
    windows = [block.window for block in architecture.blocks if block.window is not None and block.window <= _FEW]
    lengths = (3, max([PAGE + 3, *(window + 2 for window in windows)]))
    vocabulary = architecture.embedding.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(vocabulary, (length + _STEPS,), generator=generator).tolist() for length in lengths]
    rows = [Row(Prompt(id=i, content="", tokens=tuple(t[:-_STEPS])), group=i, sample=0) for i, t in enumerate(texts)]
    forward = PagedForward(decoder, max_rows=len(rows), cache_bytes=2**30)
    forward.start(rows, max_new_tokens=_STEPS)
    first = forward.admit(rows)[1]
    assert first is not None
    later = [torch.tensor([text[-step] for text in texts], device=policy.device) for step in range(_STEPS, 0, -1)]
    own = torch.stack([first, *(forward.step(tokens) for tokens in later)], 1)
    return max(float(_difference(x, _reference(policy, text))) for x, text in zip(own, texts, strict=True))


def _reference(policy: CausalPolicy, text: list[int]) -> Tensor:
    logits: Tensor = policy.run(input_ids=torch.tensor([text], device=policy.device), use_cache=False).logits
    return logits[0, -_STEPS - 1 :]


def _difference(own: Tensor, reference: Tensor) -> Tensor:
    dtype = torch.promote_types(reference.dtype, torch.float32)
    return (own.to(dtype).log_softmax(-1) - reference.to(dtype).log_softmax(-1)).abs().max()
