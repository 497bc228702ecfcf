"""The consistency policy's network, and PyTorch's initial weights."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.networks.consistency import ConsistencyNetwork
from deflow_vision.networks.mlp import MLP, EnsembleMLP, uniform_init_

B, D, A = 5, 4, 3


def test_the_time_enters_as_sines_and_cosines_of_eight_frequencies():
    network, seen = ConsistencyNetwork(D, A, (11,)), []
    network.time_mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    times = torch.tensor([0.002, 2.0, 80.0])
    network(torch.randn(3, D), torch.randn(3, A), times)
    rates = [10_000 ** (-k / 7) for k in range(8)]
    wanted = [[f(t * rate) for f in (math.sin, math.cos) for rate in rates] for t in (0.002, 2, 80)]
    torch.testing.assert_close(seen[0], torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_large_inputs_are_not_rounded_to_bfloat16_under_autocast():
    network = ConsistencyNetwork(D, A, (11, 13))
    inputs = (torch.randn(B, D), 80 * torch.randn(B, A), torch.full((B,), 80.0))
    wanted = network(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(*inputs), wanted)


@pytest.mark.parametrize("make", [MLP, lambda *dims: EnsembleMLP(2, *dims)])
def test_pytorchs_initial_weights_are_uniform_within_the_root_of_the_fan_in(make):
    torch.manual_seed(0)
    mlp = make(900, (100,), 400)
    uniform_init_(mlp)
    for name, parameter in mlp.named_parameters():
        first = name.startswith(("hidden.0", "weights.0", "biases.0"))
        bound = 1 / math.sqrt(900 if first else 100)
        assert 0.85 * bound < parameter.abs().max() <= bound, name
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25), name


def test_members_begin_with_weights_of_their_own():
    mlp = EnsembleMLP(2, D, (11,), 1)
    uniform_init_(mlp)
    assert not torch.equal(mlp.weights[0][0], mlp.weights[0][1])
    assert not torch.equal(mlp.biases[0][0], mlp.biases[0][1])
