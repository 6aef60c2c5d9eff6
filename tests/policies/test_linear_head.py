"""Log-probabilities and entropy by a linear head in chunks, against plain log-softmax in float64."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from upslope.policies import linear_head
from upslope.policies.linear_head import head_scores

ACTIONS, WIDTH, VOCABULARY = 23, 16, 101


@pytest.fixture(params=[1, 4 * 4 * VOCABULARY, 1 << 20])
def _chunked(request, monkeypatch):
    """One row a chunk, four, and all in one."""
    monkeypatch.setattr(linear_head, "_CHUNK_BYTES", request.param)


def _case(*, bias, dtype):
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    with torch.no_grad():
        head.weight.mul_(4.0)
    return head, torch.randn(ACTIONS, WIDTH, dtype=dtype, requires_grad=True), torch.randint(VOCABULARY, (ACTIONS,))


def _expected(head, hidden, actions, sampling):
    """By torch.distributions over the whole logits, cut where the sampling says so."""
    logits = head(hidden) / sampling.temperature
    if sampling.top_k:
        kept = logits.topk(sampling.top_k, dim=1).indices
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, kept, True).scatter(1, actions[:, None], True)
        logits = logits.masked_fill(~seen, float("-inf"))
    logprobs = logits.log_softmax(1)
    entropy = -(logprobs.exp() * logprobs.masked_fill(logprobs == float("-inf"), 0.0)).sum(1)
    return logprobs.gather(1, actions[:, None])[:, 0], entropy


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.7, None), (1.3, 5)])
def test_values_and_gradients(sampling, bias, dtype, tolerance, temperature, top_k):
    """log p[a], the entropy, and gradients of both to hidden states, weight and bias."""
    setting = sampling(temperature, top_k)
    head, hidden, actions = _case(bias=bias, dtype=dtype)
    wanted = [hidden, *head.parameters()]
    mix = torch.randn(2, ACTIONS, dtype=dtype)
    found = head_scores(head, hidden, actions, sampling=setting, entropy=True)
    expected = _expected(head, hidden, actions, setting)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert_close(one, other, rtol=tolerance, atol=tolerance)
    for weights in (mix, mix * torch.tensor([[1.0], [0.0]])):
        actual = torch.autograd.grad((torch.stack(found) * weights).sum(), wanted, retain_graph=True)
        plain = torch.autograd.grad((torch.stack(expected) * weights).sum(), wanted, retain_graph=True)
        for one, other in zip(actual, plain, strict=True):
            assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_entropy_may_be_left_out_or_left_alone(sampling):
    """Without entropy, and with one that enters no loss, the gradient is that of the log-probabilities."""
    head, hidden, actions = _case(bias=False, dtype=torch.float64)
    logprobs, none = head_scores(head, hidden, actions, sampling=sampling(), entropy=False)
    assert none is None
    watched, _ = head_scores(head, hidden, actions, sampling=sampling(), entropy=True)
    plain, _ = _expected(head, hidden, actions, sampling())
    expected = torch.autograd.grad(plain.sum(), hidden)
    for one in (logprobs, watched):
        assert_close(torch.autograd.grad(one.sum(), hidden), expected, rtol=1e-11, atol=1e-11)


def test_a_frozen_head_passes_gradients_on(sampling):
    head, hidden, actions = _case(bias=True, dtype=torch.float64)
    head.requires_grad_(False)
    logprobs, entropy = head_scores(head, hidden, actions, sampling=sampling(0.9), entropy=True)
    (logprobs + entropy).sum().backward()
    assert head.weight.grad is None
    expected = torch.autograd.grad(sum(_expected(head, hidden, actions, sampling(0.9))).sum(), hidden)[0]
    assert_close(hidden.grad, expected, rtol=1e-11, atol=1e-11)


def test_half_precision_takes_its_log_softmax_in_float32(sampling):
    """Under autocast the products are bfloat16's, what follows float32's."""
    head, hidden, actions = _case(bias=False, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, entropy = head_scores(head, hidden, actions, sampling=sampling(), entropy=True)
        logits = head(hidden)
    assert logits.dtype == torch.bfloat16
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact = torch.distributions.Categorical(logits=logits.double())
    assert_close(logprobs.double(), exact.log_prob(actions), rtol=0, atol=1e-5)
    assert_close(entropy.double(), exact.entropy(), rtol=0, atol=1e-5)


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return result


@pytest.mark.parametrize("top_k", [None, 5])
def test_never_holds_all_logits(monkeypatch, sampling, top_k):
    monkeypatch.setattr(linear_head, "_CHUNK_BYTES", 2 * 4 * VOCABULARY)
    monkeypatch.setattr(linear_head.gemm, "ROWS", 2)
    head, hidden, actions = _case(bias=False, dtype=torch.float32)
    with _Largest() as largest:
        logprobs, entropy = head_scores(head, hidden, actions, sampling=sampling(1.0, top_k), entropy=True)
        (logprobs + entropy).sum().backward()
    assert largest.size == head.weight.numel()
    assert largest.size < ACTIONS * VOCABULARY
