"""Diffusion against known answers."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.diffusion import ddpm_sample, diffusion_loss, vp_alpha, vp_scales

B, T, A = 4, 5, 3


def indices(*values):
    return torch.tensor([float(value) for value in values])


def gaussian_noise_model(mean, variance, num_steps):
    """eps*(x, t) of data N(mean, variance): -sqrt(1 - abar) times the score of x_t."""

    def model(x, index):
        data_scales, noise_scales = vp_scales(index, num_steps)
        spread = data_scales.square() * variance + noise_scales.square()
        return noise_scales * (x - data_scales * mean) / spread

    return model


def test_alphas_of_five_steps_are_those_of_the_schedule():
    # exp(-0.1 / 5 - 9.9 (2 t - 1) / 50)
    exponents = [-0.218, -0.614, -1.010, -1.406, -1.802]
    found = [vp_alpha(step, 5) for step in range(1, 6)]
    assert found == pytest.approx([math.exp(exponent) for exponent in exponents])


@pytest.mark.parametrize("num_steps", [1, 5, 50])
def test_scales_are_roots_of_the_product_of_the_alphas(num_steps):
    data_scales, noise_scales = vp_scales(indices(*range(num_steps)), num_steps)
    product = 1.0
    for step in range(1, num_steps + 1):
        product *= vp_alpha(step, num_steps)
        assert data_scales[step - 1].item() == pytest.approx(math.sqrt(product), rel=1e-5)
        assert noise_scales[step - 1].item() == pytest.approx(math.sqrt(1 - product), rel=1e-5)


def test_the_last_step_is_as_far_from_the_data_whatever_the_number_of_steps():
    for num_steps in (1, 5, 50):
        data_scale = vp_scales(indices(num_steps - 1), num_steps)[0].item()
        assert data_scale == pytest.approx(math.exp(-(0.1 + 9.9 / 2) / 2), rel=1e-5)


def test_the_loss_is_a_sum_over_dimensions_and_a_mean_over_the_batch():
    noises = torch.arange(6.0).view(2, 3)
    loss = diffusion_loss(
        lambda x, t: torch.zeros_like(x), torch.zeros(2, 3), noises, indices(0, 1), T
    )
    assert loss.item() == pytest.approx((0 + 1 + 4 + 9 + 16 + 25) / 2)


def test_the_loss_asks_the_model_at_points_of_the_noising_path_and_at_the_steps_index():
    seen = {}

    def record(x, t):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    diffusion_loss(record, torch.full((2, 1), 0.5), torch.full((2, 1), 2.0), indices(0, 4), T)
    first, last = math.exp(-0.218), math.exp(-5.05)
    wanted = [math.sqrt(a) * 0.5 + math.sqrt(1 - a) * 2.0 for a in (first, last)]
    torch.testing.assert_close(seen["x"].flatten(), torch.tensor(wanted))
    assert seen["t"].tolist() == [0, 4]


def test_a_model_that_knows_the_noise_has_no_loss():
    actions, noises = torch.rand(B, A), torch.randn(B, A)

    def exact(x, index):
        data_scales, noise_scales = vp_scales(index, T)
        return (x - data_scales * actions) / noise_scales

    loss = diffusion_loss(exact, actions, noises, indices(0, 1, 3, 4), T)
    assert loss.item() == pytest.approx(0, abs=1e-8)


def test_one_step_of_the_sampler_is_ddpms_by_hand():
    # T = 2 from x = 0.4 with eps_hat = 0.5 at the far step, 0 at the near one, and z = 0.1.
    far, near = vp_alpha(2, 2), vp_alpha(1, 2)
    found = ddpm_sample(lambda x, t: 0.5 * t.unsqueeze(-1), torch.tensor([[[0.4], [0.1]]]))
    middle = (0.4 - (1 - far) / math.sqrt(1 - far * near) * 0.5) / math.sqrt(far)
    middle += math.sqrt(1 - far) * 0.1
    assert abs(middle) < 1
    assert found.item() == pytest.approx(middle / math.sqrt(near), rel=1e-5)


def test_every_step_is_clipped_and_the_last_one_adds_no_noise():
    seen = []

    def record(x, t):
        seen.append((x.clone(), t[0].item()))
        return torch.zeros_like(x)

    noises = torch.full((B, T, A), 10.0)
    found = ddpm_sample(record, noises)
    points, steps = zip(*seen, strict=True)
    assert steps == (4, 3, 2, 1, 0)
    assert torch.equal(points[0], noises[:, 0])
    assert all(torch.equal(x, torch.ones(B, A)) for x in (*points[1:], found))


def test_a_sampler_of_one_step_leaves_the_exact_mean():
    # E[a | x_1] of N(0.3, 0.01), which is what DDPM's last step computes.
    x = torch.linspace(-2, 2, B).view(B, 1, 1)
    found = ddpm_sample(gaussian_noise_model(0.3, 0.01, 1), x)
    alpha = vp_alpha(1, 1)
    gain = math.sqrt(alpha) * 0.01 / (alpha * 0.01 + 1 - alpha)
    torch.testing.assert_close(found, 0.3 + gain * (x[:, 0] - math.sqrt(alpha) * 0.3))


def test_the_sampler_recovers_a_gaussian_from_its_exact_noise_model():
    noises = torch.randn(20_000, 100, 1, generator=torch.Generator().manual_seed(0))
    samples = ddpm_sample(gaussian_noise_model(0.3, 0.15**2, 100), noises)
    assert samples.mean().item() == pytest.approx(0.3, abs=0.005)
    assert samples.std().item() == pytest.approx(0.15, abs=0.01)
