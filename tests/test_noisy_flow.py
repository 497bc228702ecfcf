"""The density of a noisy path against torch's distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from deflow_vision.noisy_flow import noisy_flow_sample

B, A, K, STD = 7, 3, 4, 0.3


def draws():
    return torch.randn(B, K + 1, A, generator=torch.Generator().manual_seed(0))


def velocity(x, t):
    return torch.sin(x) + t.unsqueeze(-1)


def path(noises):
    """x_0, ..., x_K and the means of the steps, one step at a time."""
    points, means = [noises[:, 0]], []
    for k in range(K):
        x = points[-1]
        means.append(x + (torch.sin(x) + k / K) / K)
        points.append(means[-1] + STD * noises[:, k + 1])
    return points, means


def test_a_paths_log_probability_is_that_of_its_gaussian_steps_and_of_tanh():
    noises = draws()
    actions, log_probs = noisy_flow_sample(velocity, noises, STD)
    points, means = path(noises)
    expected = Normal(0.0, 1.0).log_prob(points[0]).sum(-1)
    for k in range(K - 1):
        expected = expected + Normal(means[k], STD).log_prob(points[k + 1]).sum(-1)
    last = Independent(
        TransformedDistribution(Normal(means[-1], STD), [TanhTransform(cache_size=1)]), 1
    )
    torch.testing.assert_close(actions, points[-1].tanh())
    expected = expected + last.log_prob(actions)
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)


def test_one_step_of_no_flow_is_a_squashed_gaussian_of_the_starts_density():
    noises = draws()[:, :1].expand(-1, 2, -1) * torch.tensor([1.0, 0.0]).view(1, 2, 1)
    actions, log_probs = noisy_flow_sample(lambda x, t: torch.zeros_like(x), noises, 1.0)
    x = noises[:, 0]
    squashed = TransformedDistribution(Normal(torch.zeros(A), 1.0), [TanhTransform(cache_size=1)])
    torch.testing.assert_close(actions, x.tanh())
    at_rest = Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) * A  # of the step's own noise, 0
    expected = squashed.log_prob(actions).sum(-1) + at_rest
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)


def test_times_run_from_zero_and_an_action_of_a_known_flow_is_known():
    seen = []

    def constant(x, t):
        seen.append(t[0].item())
        return torch.full_like(x, 0.5)

    noises = draws()
    actions, _ = noisy_flow_sample(constant, noises, STD)
    assert seen == [0, 0.25, 0.5, 0.75]
    torch.testing.assert_close(actions, (noises[:, 0] + 0.5 + STD * noises[:, 1:].sum(1)).tanh())


def test_only_tanhs_share_of_the_log_probability_has_a_gradient():
    noises, shift = draws(), torch.tensor(0.1, requires_grad=True)
    actions, log_probs = noisy_flow_sample(lambda x, t: shift + 0 * x, noises, STD)
    (slope,) = torch.autograd.grad(log_probs.sum(), shift, retain_graph=True)
    assert slope.item() == pytest.approx((2 * actions).sum().item(), rel=1e-3)


def test_an_action_at_the_edge_has_a_finite_log_probability():
    noises = draws() + 100
    actions, log_probs = noisy_flow_sample(velocity, noises, STD)
    assert (actions == 1).all()
    assert torch.isfinite(log_probs).all()
