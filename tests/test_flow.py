import pytest
import torch

from deflow_vision.flow import euler_sample, flow_matching_loss

B, A = 5, 3


def test_a_constant_field_moves_the_noise_by_that_constant():
    noises, velocity = torch.randn(B, A), torch.tensor([0.5, -2.0, 3.0])
    ends = euler_sample(lambda x, t: velocity.expand_as(x), noises, 7)
    torch.testing.assert_close(ends, noises + velocity)


def test_euler_evaluates_the_field_at_k_over_m():
    seen = []
    euler_sample(lambda x, t: seen.append(t[0].item()) or torch.zeros_like(x), torch.zeros(B, A), 4)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_euler_converges_to_the_exponential_at_first_order():
    start = torch.ones(B, A)
    errors = [
        (euler_sample(lambda x, t: x, start, steps) - torch.e).abs().max().item()
        for steps in (10, 20)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)


def test_nothing_on_the_way_is_clipped():
    def there_and_back(x, t):
        return torch.where(t < 0.5, 10.0, -10.0).unsqueeze(-1).expand_as(x)

    noises = torch.randn(B, A)
    torch.testing.assert_close(euler_sample(there_and_back, noises, 10), noises)


def test_the_true_velocity_has_no_loss():
    actions, noises = torch.randn(B, A), torch.randn(B, A)
    loss = flow_matching_loss(lambda x, t: actions - noises, actions, noises, torch.rand(B))
    assert loss == 0


def test_the_loss_is_the_mean_over_samples_and_dimensions():
    actions, noises = torch.ones(B, A), torch.zeros(B, A)
    loss = flow_matching_loss(lambda x, t: torch.zeros_like(x), actions, noises, torch.rand(B))
    assert loss.item() == pytest.approx(1.0)


def test_the_path_runs_straight_from_noise_to_action():
    actions, noises, times = torch.randn(B, A), torch.randn(B, A), torch.linspace(0, 1, B)
    seen = {}

    def velocity(x, t):
        seen["x"], seen["t"] = x, t
        return torch.zeros_like(x)

    flow_matching_loss(velocity, actions, noises, times)
    torch.testing.assert_close(seen["x"][0], noises[0])
    torch.testing.assert_close(seen["x"][-1], actions[-1])
    assert torch.equal(seen["t"], times)
