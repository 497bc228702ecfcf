"""Gaussians that tanh takes to actions (density, first layers); a flow whose features stay."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from deflow_vision.networks.actors import (
    SquashedGaussianActor,
    VelocityField,
    squashed_gaussian_sample,
)
from deflow_vision.networks.mlp import MLP, EnsembleMLP, orthogonal_init_

B, A, D = 7, 3, 5


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def squashed_normal(means, stds):
    """Of torch, in double precision: its cache keeps u beside tanh(u)."""
    normal = Normal(means.double(), stds.double())
    return Independent(TransformedDistribution(normal, TanhTransform(cache_size=1)), 1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 30.0])
def test_samples_and_their_log_probabilities_equal_torchs(scale):
    means, log_stds, noises = scale * torch.randn(B, A), torch.randn(B, A) / 2, torch.randn(B, A)
    actions, log_probs = squashed_gaussian_sample(means, log_stds, noises)
    reference = squashed_normal(means, log_stds.exp())
    points = means.double() + log_stds.exp().double() * noises.double()
    wanted = reference.base_dist.transforms[0](points)
    torch.testing.assert_close(actions.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_probs.double(), reference.log_prob(wanted), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_the_log_probability_is_exact_where_the_action_rounds_to_its_bound(end):
    means = torch.full((1, A), 40 * end)
    actions, log_probs = squashed_gaussian_sample(means, torch.zeros(1, A), torch.zeros(1, A))
    assert torch.equal(actions, torch.full((1, A), end))
    # 1 - tanh(u)^2 is 4 exp(-2 |u|) far out.
    wanted = A * (-math.log(2 * math.pi) / 2 - (math.log(4) - 80))
    assert log_probs.item() == pytest.approx(wanted, rel=1e-6)


def test_the_density_of_actions_sums_to_one():
    mean, log_std = 0.7, -0.4
    edges = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    actions = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    noises = (torch.atanh(actions) - mean) / math.exp(log_std)
    full = torch.full_like(noises, mean), torch.full_like(noises, log_std)
    again, log_probs = squashed_gaussian_sample(*full, noises)
    torch.testing.assert_close(again, actions)
    assert (log_probs.exp() * (2 / 20_000)).sum().item() == pytest.approx(1, abs=1e-5)


def test_gradients_far_out_are_finite_and_those_of_torch():
    means = torch.tensor([[15.0, -15.0, 0.3]], requires_grad=True)
    log_stds = torch.tensor([[1.5, 0.2, -1.0]], requires_grad=True)
    noises = torch.tensor([[2.0, -2.0, 0.5]])
    log_prob = squashed_gaussian_sample(means, log_stds, noises)[1].sum()
    found = torch.autograd.grad(log_prob, (means, log_stds))
    ours = [x.detach().double().requires_grad_() for x in (means, log_stds)]
    points = ours[0] + ours[1].exp() * noises.double()
    transform = TanhTransform()
    density = Normal(ours[0], ours[1].exp()).log_prob(points)
    jacobian = transform.log_abs_det_jacobian(points, points.tanh())
    wanted = torch.autograd.grad((density - jacobian).sum(), ours)
    for gradient, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-6)


def test_the_deviation_depends_on_the_state_and_is_clipped():
    actor = SquashedGaussianActor(D, A, (11,), log_std_range=(-0.5, 0.25))
    with torch.no_grad():
        actor.mlp.out.weight.mul_(1000)
    means, log_stds = actor(torch.randn(100, D))
    assert means.shape == log_stds.shape == (100, A)
    assert (log_stds.min(), log_stds.max()) == (-0.5, 0.25)
    assert log_stds.std(0).max() > 0


def test_mean_and_deviation_start_as_two_layers_ten_times_smaller_than_xaviers():
    actor = SquashedGaussianActor(D, A, (400,))
    bound = 0.1 * math.sqrt(6 / (400 + A))
    for kernel in actor.mlp.out.weight.chunk(2):
        assert 0.97 * bound < kernel.abs().max() <= bound
    assert actor.mlp.hidden[0].weight.abs().max() > 5 * bound


def test_the_log_deviation_may_have_a_learned_scale_and_shift():
    actor = SquashedGaussianActor(D, A, (11,), learned_log_std_scale=True)
    features = torch.randn(B, D)
    raw = actor.mlp(features)[:, A:]
    torch.testing.assert_close(actor(features)[1], raw - 1)
    with torch.no_grad():
        actor.log_std_scale.fill_(3.0)
        actor.log_std_shift.fill_(0.5)
    torch.testing.assert_close(actor(features)[1], 3 * raw + 0.5)


def test_orthogonal_kernels_have_their_gains_member_by_member():
    mlp, ensemble = MLP(D, (11, 13), A), EnsembleMLP(2, D, (11, 13), A)
    for network in (mlp, ensemble):
        orthogonal_init_(network, out_gain=0.25)
    layers = [*mlp.hidden, mlp.out]
    kernels = [[layer.weight for layer in layers]]
    kernels += [[weight[i] for weight in ensemble.weights] for i in range(2)]
    for member in kernels:
        for kernel, gain in zip(member, (math.sqrt(2), math.sqrt(2), 0.25), strict=True):
            values = torch.linalg.svdvals(kernel.detach())
            torch.testing.assert_close(values, torch.full_like(values, gain))
    assert not torch.equal(*(member[0] for member in kernels[1:]))
    assert all(layer.bias.abs().max() == 0 for layer in layers)
    assert all(bias.abs().max() == 0 for bias in ensemble.biases)


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 2e-6), (True, 1e-2)])
def test_a_held_field_is_the_field_but_for_rounding(bf16, tolerance):
    field = VelocityField(D, A, (64, 64))
    features, actions, times = torch.randn(B, D), torch.randn(B, A), torch.rand(B)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        wanted, held = field(features, actions, times), field.held(features)
        torch.testing.assert_close(held(actions, times), wanted, rtol=tolerance, atol=tolerance)
        # Each argument counts: what is not held is read anew at each call.
        assert (held(actions + 2, times) - wanted).abs().max() > 5 * tolerance
        assert (held(actions, times + 2) - wanted).abs().max() > 5 * tolerance
        assert held(actions, times).dtype == torch.float32


def test_a_held_field_passes_gradients_on():
    field, features = VelocityField(D, A, (8,)), torch.randn(B, D, requires_grad=True)
    field.held(features)(torch.randn(B, A), torch.rand(B)).sum().backward()
    assert features.grad.any()
    assert all(parameter.grad.any() for parameter in field.parameters())
