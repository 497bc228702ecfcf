"""Linear layers by oneDNN against PyTorch's own, with first and second gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deflow_vision.networks import products
from deflow_vision.networks.products import Linear, linear, linear_gelu

ROWS, IN, OUT = products.FEW_ROWS + 4, products.NARROW + 5, products.NARROW + 2


def draw(*shape):
    return torch.randn(*shape, requires_grad=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def avx512(monkeypatch):
    """A processor on which oneDNN is the faster, whatever this one is."""
    monkeypatch.setattr(products, "lacks_avx512", lambda: False)


def gradients(function, inputs):
    """Of a scalar, and of the sum of squares of those: first and second derivatives."""
    scalar = function(*inputs).sin().sum()
    first = torch.autograd.grad(scalar, inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [scalar, *first, *second]


def assert_same(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_oneDNN_is_what_multiplies(monkeypatch):
    calls = []
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args))
    Linear(IN, OUT)(draw(ROWS, IN))
    assert not calls


def test_few_rows_are_pytorchs_own():
    layer, x = Linear(IN, OUT), draw(products.FEW_ROWS, IN)
    assert type(layer(x).grad_fn).__name__ == "AddmmBackward0"
    assert type(layer(draw(ROWS, IN)).grad_fn).__name__ == "_LinearBackward"


@pytest.mark.parametrize("narrow", [(products.NARROW - 1, OUT), (IN, products.NARROW - 1)])
def test_few_columns_are_pytorchs_own(narrow):
    layer, x = Linear(*narrow), draw(ROWS, narrow[0])
    assert type(layer(x).grad_fn).__name__ == "AddmmBackward0"


@pytest.mark.parametrize("rows", [products.FEW_ROWS, ROWS])
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 2e-2)])
def test_a_layer_and_its_gelu_are_one_formula(rows, bf16, tolerance):
    inputs = [draw(rows, IN), draw(OUT, IN) / IN**0.5, draw(OUT)]
    wanted = F.gelu(F.linear(*inputs), approximate="tanh")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                got = linear_gelu(*inputs).float()
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_without_avx512_it_is_pytorchs_own(monkeypatch):
    monkeypatch.setattr(products, "lacks_avx512", lambda: True)
    layer, x = Linear(IN, OUT), draw(ROWS, IN)
    assert_same(layer(x), F.linear(x, layer.weight, layer.bias))
    assert type(layer(x).grad_fn).__name__ == "AddmmBackward0"


@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_has_the_values_and_gradients_of_its_formula(biased):
    inputs = [draw(ROWS, IN), draw(OUT, IN), *([draw(OUT)] if biased else [])]
    assert_same(gradients(linear, inputs), gradients(F.linear, inputs))


def test_gradients_are_made_only_where_they_are_asked():
    x, weight = draw(ROWS, IN).detach(), draw(OUT, IN)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(OUT, IN))
    assert x.grad is None


def test_transforms_pass_through():
    layer, x = Linear(IN, OUT), draw(ROWS, IN).detach()
    slopes = torch.func.grad(lambda x: layer(x).sum())(x)
    torch.testing.assert_close(slopes, layer.weight.sum(0).detach().expand(ROWS, IN))


def test_more_dimensions_and_float64_take_another_way():
    layer, x = Linear(IN, OUT), draw(2, ROWS, IN)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    layer, x = layer.double(), x.double()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=0)


def test_slices_and_expanded_rows_take_a_fast_kernel(onednn_kernels):
    wide, x = draw(OUT, IN + 3).detach(), draw(ROWS, IN + 2).detach()
    weights = [wide[:, :IN], wide[:, 3:], wide[:1, :IN].expand(OUT, IN)]
    for rows in (x[:, 1:-1], x[:1, :IN].expand(ROWS, IN)):
        for weight in weights:
            found = []
            names = onednn_kernels(lambda: found.append(linear(rows, weight)))  # noqa: B023
            torch.testing.assert_close(found[0], rows @ weight.t())
            assert len(names) == 1
            assert "ref" not in names[0]
