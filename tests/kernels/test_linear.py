"""Every linear kernel against a product in float64."""

import warnings

import pytest
import torch
from torch.testing import assert_close

from upslope.errors import KernelError
from upslope.kernels import linear
from upslope.kernels.linear import choose_kernel, make_linear

EXACT = ("native", "onednn", "torch")
CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(x, weights, biases):
    parts = [x.double() @ w.double().T + (0 if b is None else b.double()) for w, b in zip(weights, biases, strict=True)]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 11, 12, 13, 25, 64, 241, 500])
def test_the_product_at_every_height(kernel, rows):
    layer, x, weight = make_linear(kernel), draw(rows, 48), draw(96, 48, seed=1)
    layer.load([weight], [None])
    assert_close(layer(x).double(), product(x, [weight], [None]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("sizes", [(64, 32, 32), (9, 3, 3), (33,), (1,), (40, 40)])
@pytest.mark.parametrize("biased", [(), (0,), (0, 1, 2)])
def test_stacked_weights_of_odd_sizes_with_and_without_bias(kernel, sizes, biased):
    weights = [draw(size, 19, seed=i) for i, size in enumerate(sizes)]
    biases = [draw(size, seed=9 + i) if i in biased else None for i, size in enumerate(sizes)]
    layer, x = make_linear(kernel), draw(7, 19, seed=5)
    layer.load(weights, biases)
    assert_close(layer(x).double(), product(x, weights, biases), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", EXACT)
def test_loading_again_takes_the_new_weights(kernel):
    layer, x, weight = make_linear(kernel), draw(3, 16), draw(32, 16, seed=1)
    layer.load([weight], [None])
    layer(x)
    weight.mul_(-2.0)
    layer.load([weight], [None])
    assert_close(layer(x).double(), product(x, [weight], [None]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", EXACT)
def test_transposed_weights_and_rows_of_a_larger_tensor(kernel):
    layer, x, weight = make_linear(kernel), draw(9, 40)[:, 3:22], draw(19, 32, seed=1).T
    layer.load([weight], [None])
    assert_close(layer(x).double(), product(x, [weight], [None]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", EXACT)
def test_what_is_not_finite_stays_so(kernel):
    layer, x, weight = make_linear(kernel), draw(4, 16), draw(32, 16, seed=1)
    x[2, 3] = float("nan")
    layer.load([weight], [None])
    assert layer(x).isnan().any(1).tolist() == [False, False, True, False]


def test_float64_goes_through_torch_and_half_precision_weights_err_as_they_should():
    x, weight = draw(5, 64), draw(32, 64, seed=1)
    exact = make_linear("torch")
    exact.load([weight.double()], [None])
    assert_close(exact(x.double()), product(x, [weight], [None]), rtol=0, atol=1e-13)
    for layer, most in ((make_linear("torch", dtype=torch.bfloat16), 0.2), (make_linear("float16"), 0.02)):
        layer.load([weight], [None])
        error = (layer(x).double() - product(x, [weight], [None])).abs().max()
        assert layer(x).dtype == torch.float32
        assert 1e-5 < error < most


def test_torch_keeps_no_copy():
    """Weights of the plain kernel are the model's own: a change shows without loading."""
    layer, x, weight = make_linear("torch"), draw(3, 16), draw(32, 16, seed=1)
    layer.load([weight], [None])
    weight.zero_()
    assert float(layer(x).abs().max()) == 0.0


def test_the_choice_is_by_device_and_dtype():
    assert choose_kernel("auto", device=CPU, dtype=torch.float64)[0] == "torch"
    assert choose_kernel("auto", device=torch.device("cuda"), dtype=torch.float32)[0] == "torch"
    assert choose_kernel("torch", device=CPU, dtype=torch.float32)[0] == "torch"
    assert choose_kernel("onednn", device=CPU, dtype=torch.float32)[0] == "onednn"
    with pytest.raises(KernelError, match=r"'float16' computes in float32 on a CPU, not in torch\.float64 on cpu"):
        choose_kernel("float16", device=CPU, dtype=torch.float64)


def test_without_compiled_kernels_the_slower_way_is_taken_and_said(monkeypatch):
    def none():
        raise KernelError("no C++ compiler is installed")

    monkeypatch.setattr(linear, "native", none)
    with pytest.warns(UserWarning, match="slower onednn kernels, because no C"):
        assert choose_kernel("auto", device=CPU, dtype=torch.float32)[0] == "onednn"
    with pytest.raises(KernelError, match=r"'native', but no C\+\+ compiler is installed; use 'auto'"):
        choose_kernel("native", device=CPU, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_kernel("onednn", device=CPU, dtype=torch.float32)[0] == "onednn"
