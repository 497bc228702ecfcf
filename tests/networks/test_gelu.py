"""GELU by the sigmoid against PyTorch's own, whichever of them this processor would take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deflow_vision.networks import gelu as module
from deflow_vision.networks.gelu import LEAST, gelu
from deflow_vision.networks.products import linear_gelu

COUNT = LEAST + 3


@pytest.fixture
def sigmoids(monkeypatch):
    """A processor whose tanh is slow; how often the sigmoid was taken."""
    calls, gate = [], module._gate
    monkeypatch.setattr(module, "lacks_avx512", lambda: True)
    monkeypatch.setattr(module, "_gate", lambda x: calls.append(x.shape) or gate(x))
    return calls


def points():
    """From -12 to 12, so that both ends are flat."""
    return torch.linspace(-12, 12, COUNT)


def theirs(x):
    return F.gelu(x, approximate="tanh")


def test_its_values_are_those_of_the_tanh(sigmoids):
    x = points()
    kept = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(gelu(x), theirs(x), rtol=1e-6, atol=1e-6)
    assert sigmoids == [x.shape]
    torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_its_first_and_second_gradients_are_those_of_the_tanh(sigmoids):
    found = {}
    for function in (gelu, theirs):
        x = points().requires_grad_()
        weights = torch.linspace(0.5, 1.5, COUNT)
        values = function(x)
        (plain,) = torch.autograd.grad((values * weights).sum(), x, retain_graph=True)
        (first,) = torch.autograd.grad((values * weights).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found[function] = values.detach(), plain, first.detach(), second
    assert len(sigmoids) == 1
    for our, their in zip(found[gelu], found[theirs], strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "x",
    [points()[: LEAST - 1], points().double(), points().bfloat16()],
    ids=["few", "float64", "bfloat16"],
)
def test_what_is_small_or_not_float32_takes_the_tanh(sigmoids, x):
    torch.testing.assert_close(gelu(x), theirs(x), rtol=0, atol=0)
    assert not sigmoids


def test_transforms_and_autocast_take_the_tanh(sigmoids):
    x = points()
    ours, expected = (torch.func.grad(lambda x: f(x).sum())(x) for f in (gelu, theirs))  # noqa: B023
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        gelu(x)
    assert not sigmoids


def test_with_avx512_it_is_the_tanh_where_a_gradient_may_be_asked(sigmoids, monkeypatch):
    monkeypatch.setattr(module, "lacks_avx512", lambda: False)
    x = points().requires_grad_()
    torch.testing.assert_close(gelu(x), theirs(x), rtol=0, atol=0)
    assert not sigmoids
    with torch.no_grad():
        torch.testing.assert_close(gelu(x), theirs(x), rtol=1e-6, atol=1e-6)
    assert len(sigmoids) == 1


@pytest.mark.parametrize("slow", [False, True])
def test_a_layer_without_gradient_is_a_product_and_its_gelu(monkeypatch, slow):
    for name in ("gelu", "products"):
        monkeypatch.setattr(f"deflow_vision.networks.{name}.lacks_avx512", lambda: slow)
    x, weight, bias = torch.randn(300, 8), torch.randn(64, 8), torch.randn(64)
    with torch.no_grad():
        torch.testing.assert_close(
            linear_gelu(x, weight, bias), theirs(F.linear(x, weight, bias)), rtol=1e-5, atol=1e-5
        )
