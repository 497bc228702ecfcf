"""The velocity critic of floq: its inputs, its starts and its integrals."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.networks.floq import FloqCritic, hl_gauss

B, N, A, D, E = 4, 6, 3, 5, 2


def make_critic(reward_range=(-1.0, 0.0), num_critics=E, **options):
    torch.manual_seed(0)
    return FloqCritic(
        D, A, (11, 13), num_critics, reward_range=reward_range, discount=0.99, **options
    )


def inputs():
    return torch.randn(B, D), torch.rand(B, 1, A), -20 * torch.rand(B, N), torch.rand(B, N)


def test_a_return_becomes_the_normal_masses_of_its_bins():
    masses = hl_gauss(torch.tensor([0.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]), 1.0)
    within = torch.tensor([[0.341345, 0.135905, 0.021400]])
    torch.testing.assert_close(masses, within / 0.498650, rtol=1e-4, atol=1e-6)


def test_the_masses_sum_to_one_at_every_return():
    masses = hl_gauss(torch.linspace(-3, 3, 9).view(3, 3), torch.linspace(-1, 1, 8), 0.5)
    assert masses.shape == (3, 3, 7)
    torch.testing.assert_close(masses.sum(-1), torch.ones(3, 3))


def test_mirrored_returns_have_mirrored_masses():
    edges, values = torch.linspace(-2, 2, 9), torch.tensor([0.3, 1.1, 2.0])
    torch.testing.assert_close(hl_gauss(-values, edges, 0.7), hl_gauss(values, edges, 0.7).flip(-1))


def test_the_bins_cover_the_returns_and_an_offset():
    critic = make_critic((-1.0, 0.5))
    assert len(critic.edges) == 51
    assert critic.edges[0].item() == pytest.approx(-101)
    assert critic.edges[-1].item() == pytest.approx(51)
    assert critic.sigma == pytest.approx(16 * 152 / 50)


@pytest.mark.parametrize(
    ("rewards", "ends"), [((-3.0, -1.0), (-301, 1)), ((1.0, 2.0), (-1, 201)), ((0.0, 0.0), (-1, 1))]
)
def test_the_return_zero_of_an_ended_episode_is_always_in_the_bins(rewards, ends):
    edges = make_critic(rewards).edges
    assert (edges[0].item(), edges[-1].item()) == pytest.approx(ends)


def test_returns_start_in_the_covered_part_of_their_range():
    critic = make_critic((-2.0, 1.0), noise_coverage=0.25)
    starts = critic.starts(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(starts, torch.tensor([-50.0, -12.5, 25.0]))


def test_a_return_far_from_all_bins_has_a_finite_velocity():
    features, actions, _, times = inputs()
    for value in (-1e6, 1e6):
        assert make_critic()(features, actions, torch.full((B, N), value), times).isfinite().all()


@pytest.mark.parametrize("embedding", ["cos", "fourier"])
def test_the_velocity_is_that_of_the_joined_inputs(embedding):
    critic = make_critic(time_embedding=embedding)
    features, actions, returns, times = inputs()
    waves = times.unsqueeze(-1)
    if embedding == "fourier":
        waves = waves * torch.pi * torch.arange(1, 65)
    masses = hl_gauss(returns, critic.edges, critic.sigma)
    state = torch.cat([features.unsqueeze(1), actions], -1).expand(-1, N, -1)
    expected = critic.mlp(torch.cat([state, masses, waves.cos()], -1).flatten(0, 1))
    velocities = critic(features, actions, returns, times)
    torch.testing.assert_close(velocities, expected.view(E, B, N), rtol=1e-4, atol=1e-5)


def test_one_action_for_all_returns_is_that_action_repeated():
    critic = make_critic()
    features, actions, returns, times = inputs()
    repeated = critic(features, actions.expand(-1, N, -1), returns, times)
    torch.testing.assert_close(critic(features, actions, returns, times), repeated)


def test_every_return_of_a_state_meets_its_own_action():
    critic = make_critic()
    features, _, starts, _ = inputs()
    actions = torch.rand(B, N, A)
    together = critic.integrate(features, actions, starts, 3)
    alone = critic.integrate(features[2:3], actions[2:3, 4:5], starts[2:3, 4:5], 3)
    torch.testing.assert_close(together[:, 2:3, 4:5], alone, rtol=1e-5, atol=1e-5)


def test_a_constant_velocity_moves_a_return_by_that_constant():
    critic = make_critic()
    with torch.no_grad():
        critic.mlp.weights[-1].zero_()
        critic.mlp.biases[-1].copy_(torch.tensor([-7.0, 2.5]).view(E, 1, 1))
    features, actions, starts, _ = inputs()
    ends = critic.integrate(features, actions, starts, 5)
    torch.testing.assert_close(ends, torch.stack([starts - 7.0, starts + 2.5]))


def test_euler_takes_the_velocity_at_k_over_k_steps(monkeypatch):
    critic = make_critic()
    monkeypatch.setattr(critic, "_velocities", lambda given, z, times: times.expand_as(z))
    features, actions, starts, _ = inputs()
    for steps in (1, 4):
        ends = critic.integrate(features, actions, starts, steps)
        expected = starts + (steps - 1) / (2 * steps)  # the integral of t, from the left
        torch.testing.assert_close(ends, expected.expand(E, -1, -1))


def test_the_velocity_of_the_straight_path_ends_at_the_target(monkeypatch):
    critic = make_critic()
    targets = torch.randn(B, 1)
    monkeypatch.setattr(critic, "_velocities", lambda given, z, times: (targets - z) / (1 - times))
    features, actions, starts, _ = inputs()
    ends = critic.integrate(features, actions, starts, 8)
    torch.testing.assert_close(ends, targets.expand(E, B, N), rtol=1e-4, atol=1e-4)


def test_an_integral_is_k_steps_of_the_velocity():
    critic = make_critic(num_critics=1)
    features, actions, starts, _ = inputs()
    returns = starts
    for k in range(3):
        times = torch.full_like(starts, k / 3)
        returns = returns + critic(features, actions, returns, times)[0] / 3
    ends = critic.integrate(features, actions, starts, 3)
    torch.testing.assert_close(ends[0], returns)


def test_members_follow_their_own_velocities():
    critic = make_critic()
    features, actions, starts, _ = inputs()
    together = critic.integrate(features, actions, starts, 3)
    for member in range(E):
        alone = make_critic(num_critics=1)
        for name, parameter in alone.named_parameters():
            parameter.data.copy_(critic.get_parameter(name)[member : member + 1])
        ends = alone.integrate(features, actions, starts, 3)
        torch.testing.assert_close(together[member : member + 1], ends, rtol=1e-4, atol=1e-4)
