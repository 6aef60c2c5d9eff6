"""Products by oneDNN or torch: equal to a float64 product, forward and backward; who multiplies is settled and told."""

import pytest
import torch
from torch.testing import assert_close

from upslope.kernels import gemm

BACKENDS = ["torch", "onednn"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Each way in turn, whatever this processor would choose."""
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(gemm, "backend", lambda: request.param)
    return request.param


def _case(shape=(3, 300), inputs=96, outputs=160, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = {"x": (*shape, inputs), "weight": (outputs, inputs), "bias": (outputs,), "grad": (*shape, outputs)}
    return {name: torch.randn(size, generator=generator, dtype=dtype) for name, size in sizes.items()}


def _relative(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_value_and_gradients_are_those_of_float64(backend, with_bias, transposed):
    """y = x W^T + b, dx = dy W, dW = dy^T x, db = sum dy, for weights of either layout, to 1e-5 relative."""
    case = _case()
    assert case["x"].numel() * len(case["bias"]) > gemm._SMALLEST
    x, bias = case["x"].requires_grad_(), case["bias"].requires_grad_(with_bias)
    stored = case["weight"].T.contiguous() if transposed else case["weight"]
    stored.requires_grad_()
    y = gemm.linear(x, stored.T if transposed else stored, bias if with_bias else None)
    y.backward(case["grad"])
    wide = {name: tensor.detach().double() for name, tensor in case.items()}
    grad = wide["grad"].flatten(0, 1)
    _relative(y, wide["x"] @ wide["weight"].T + wide["bias"] * with_bias)
    _relative(x.grad, wide["grad"] @ wide["weight"])
    weight_grad = grad.T @ wide["x"].flatten(0, 1)
    _relative(stored.grad, weight_grad.T if transposed else weight_grad)
    if with_bias:
        _relative(bias.grad, grad.sum(0))


def test_gradients_that_are_expanded_or_not_asked_for(backend):
    """The gradient of a sum has stride zero; frozen weights get none."""
    case = _case()
    x = case["x"].requires_grad_()
    gemm.linear(x, case["weight"]).sum().backward()
    _relative(x.grad, case["weight"].double().sum(0).expand(x.shape))
    weight = case["weight"].requires_grad_()
    gemm.linear(x.detach(), weight).sum().backward()
    _relative(weight.grad, x.detach().double().flatten(0, 1).sum(0).expand(weight.shape))
    with torch.inference_mode():
        _relative(gemm.linear(x, weight), x.double() @ weight.double().T)


def test_only_large_float32_products_leave_torch(monkeypatch):
    monkeypatch.setattr(gemm, "backend", lambda: "onednn")
    large, small = _case(), _case(shape=(1, 4))
    assert gemm._by_onednn(large["x"], large["weight"])
    assert not gemm._by_onednn(small["x"], small["weight"])
    for dtype in (torch.float64, torch.bfloat16):
        case = _case(dtype=dtype)
        assert not gemm._by_onednn(case["x"], case["weight"])
        assert_close(gemm.linear(case["x"], case["weight"]), case["x"] @ case["weight"].T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gemm.linear(large["x"], large["weight"]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "amd", "expected"),
    [("AVX512", True, "onednn"), ("AVX512", False, "torch"), ("AVX2", True, "torch"), ("DEFAULT", False, "torch")],
)
def test_the_processor_decides(monkeypatch, capability, amd, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(gemm, "_is_amd", lambda: amd)
    assert gemm.backend.__wrapped__() == expected
