"""The MeanFlow identity against flows whose mean velocity is known, and against differences."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.meanflow import adaptive_mean, load_forward_mode, meanflow_errors
from deflow_vision.networks.dit import DiT

B, A, D = 7, 3, 5


@pytest.fixture(autouse=True)
def forward_mode():
    load_forward_mode()


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    actions, noises = (0.5 * torch.randn(B, A, generator=generator) for _ in "ab")
    return actions, noises, 0.1 + 0.9 * torch.rand(B, generator=generator)


def moved_dit():
    torch.manual_seed(0)
    network = DiT(D, A, 16, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_the_mean_velocity_of_data_at_one_point_satisfies_the_identity():
    _, noises, times = draws()
    action = torch.tensor([0.3, -0.2, 0.1])

    def network(x, t):  # u = (x - a) / t, the straight way from a to x
        return x - (x - action) / t.unsqueeze(-1)

    errors = meanflow_errors(network, action.expand(B, A), noises, times)
    torch.testing.assert_close(errors, torch.zeros(B), rtol=0, atol=1e-10)


def test_the_target_of_a_polynomial_is_as_computed_by_hand():
    actions, noises, times = draws()
    t = times.unsqueeze(1)
    velocities = noises - actions
    points = actions + t * velocities
    slopes = 2 * points * velocities * t + points.square()  # d/dt of x^2 t along the path
    targets = points + (t - 1) * velocities - t * slopes
    expected = (points.square() * t - targets).square().mean(1)
    errors = meanflow_errors(lambda x, t: x.square() * t.unsqueeze(-1), actions, noises, times)
    torch.testing.assert_close(errors, expected)


def test_the_derivative_of_the_transformer_equals_finite_differences():
    network, (actions, noises, times) = moved_dit(), draws()
    features = torch.randn(B, D)
    t = times.unsqueeze(1).double()
    network.double()

    def along(t):
        points = (1 - t) * actions.double() + t * noises.double()
        return network(features.double(), points, t.squeeze(1))

    def exact(x, t):  # without the network's own rounding to float32
        return network(features.double(), x, t)

    eps = 1e-5
    with torch.no_grad():
        slopes = (along(t + eps) - along(t - eps)) / (2 * eps)
        assert slopes.abs().max() > 0.01
        velocities = (noises - actions).double()
        points = (1 - t) * actions + t * noises
        targets = points + (t - 1) * velocities - t * slopes
        expected = (along(t) - targets).square().mean(1)
    errors = meanflow_errors(exact, actions.double(), noises.double(), times.double())
    torch.testing.assert_close(errors, expected, rtol=1e-5, atol=1e-8)


def test_the_target_is_a_constant_and_lies_within_its_limit():
    actions, noises, times = draws()
    scale = torch.tensor(100.0, requires_grad=True)
    errors = meanflow_errors(lambda x, t: scale * x, actions, noises, times)
    t = times.unsqueeze(1)
    velocities = noises - actions
    points = actions + t * velocities
    targets = (points + (t - 1) * velocities - t * 100 * velocities).clamp(-5, 5)
    assert (targets.abs() == 5).any()
    torch.testing.assert_close(errors.detach(), (100 * points - targets).square().mean(1))
    (slope,) = torch.autograd.grad(errors.sum(), scale)
    torch.testing.assert_close(slope, (2 * (100 * points - targets) * points).mean(1).sum())


def test_a_samples_weight_falls_with_its_error_and_takes_no_gradient():
    errors = torch.tensor([0.01, 4.0], requires_grad=True)
    loss = adaptive_mean(errors, 0.2, 1e-4)
    weights = torch.tensor([0.0101**-0.2, 4.0001**-0.2])
    torch.testing.assert_close(loss.detach(), (weights * errors.detach()).mean())
    (gradient,) = torch.autograd.grad(loss, errors)
    torch.testing.assert_close(gradient, weights / 2)


def test_the_transformer_begins_at_zero_everywhere():
    torch.manual_seed(0)
    network = DiT(D, A, 16, 2)
    outputs = network(torch.randn(B, D), torch.randn(B, A), torch.rand(B))
    assert torch.equal(outputs, torch.zeros(B, A))


def test_attention_over_one_token_does_not_see_its_queries_and_keys():
    network = moved_dit()
    block, dim = network.blocks[0], 16
    attention = torch.nn.MultiheadAttention(dim, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight[2 * dim :] = block.value.weight
        attention.in_proj_bias[2 * dim :] = block.value.bias
        attention.out_proj.load_state_dict(block.project.state_dict())
    token = torch.randn(B, 1, dim)
    attended, _ = attention(token, token, token)
    torch.testing.assert_close(attended, block.project(block.value(token)))
