"""The noise network: its dropout, its embedding of time, its initial weights and precision."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.networks.diffusion import NoiseNetwork

B, A, D, W, K = 4, 3, 5, 16, 2


@pytest.fixture
def network():
    torch.manual_seed(0)
    return NoiseNetwork(D, A, width=W, num_blocks=K, dropout=0.25)


@pytest.fixture
def inputs():
    return torch.randn(B, D), torch.randn(B, A), torch.arange(float(B))


def test_dropout_sets_a_blocks_input_to_zero_and_scales_the_rest(network, inputs):
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    keep = torch.rand(B, K, W) > 0.5
    network(*inputs)
    network(*inputs, keep)
    whole, dropped = seen[0], seen[2]
    torch.testing.assert_close(dropped, torch.where(keep[:, 0], whole / 0.75, 0.0))
    assert torch.equal(seen[3] == 0, ~keep[:, 1])


def test_blocks_without_weights_leave_the_stream_as_it_is(network, inputs):
    features, x, times = inputs
    with torch.no_grad():
        for block in network.blocks:
            block.narrow.weight.zero_()
    angles = 2 * math.pi * times[:, None] * network.frequencies
    embedding = network.time_mlp(torch.cat([angles.cos(), angles.sin()], -1))
    stream = network.inward(torch.cat([x, features, embedding], -1))
    wanted = network.out(stream * stream.sigmoid())
    torch.testing.assert_close(network(*inputs), wanted)


def test_the_step_matters(network, inputs):
    features, x, times = inputs
    assert not torch.allclose(network(features, x, times), network(features, x, times + 1))


def test_initial_weights_are_those_of_the_reference():
    torch.manual_seed(0)
    network = NoiseNetwork(D, A, width=64, num_blocks=1, dropout=0.0)
    (block,) = network.blocks
    for layer in (block.wide, block.narrow):
        deviation = 1 / math.sqrt(layer.in_features)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.03)
        assert layer.weight.abs().max() <= 2 * deviation / 0.8796
    bound = math.sqrt(6 / (64 + A))
    assert network.out.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
    assert network.frequencies.std().item() == pytest.approx(0.2, rel=0.3)


def test_the_last_layer_is_float32_under_autocast(network, inputs):
    with torch.autocast("cpu", torch.bfloat16):
        assert network(*inputs).dtype == torch.float32
