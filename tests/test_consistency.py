"""Consistency models against known answers."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.consistency import (
    consistency_function,
    consistency_loss,
    consistency_sample,
    karras_times,
    num_times,
)

B, T, A = 5, 4, 3


def count(number):
    return torch.tensor(float(number))


def times(indices, number):
    return karras_times(torch.tensor(indices, dtype=torch.float32), count(number))


def wild(x, t):
    """A network far from the identity."""
    return 100 * x.cos() + t.unsqueeze(-1)


def test_the_function_is_the_identity_at_the_least_time_whatever_the_network_is():
    x = torch.randn(B, A)
    assert torch.equal(consistency_function(wild, x, torch.full((B,), 0.002)), x)


def test_the_function_scales_point_and_network_as_karras_has_it():
    x, t = torch.ones(1, 1), torch.tensor([1.002])
    found = consistency_function(lambda x, t: 10 * torch.ones_like(x), x, t)
    c_skip, c_out = 0.25 / (1 + 0.25), 0.5 / math.sqrt(1.002**2 + 0.25)
    assert found.item() == pytest.approx(c_skip + 10 * c_out)


def test_far_from_the_data_the_function_is_half_the_network():
    found = consistency_function(
        lambda x, t: torch.full_like(x, 3), torch.ones(1, 1), count(80)[None]
    )
    assert found.item() == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("number", [2, 3, 150])
def test_times_go_from_the_least_to_the_greatest(number):
    found = times(list(range(number)), number)
    assert found[0].item() == pytest.approx(0.002, rel=1e-5)
    assert found[-1].item() == pytest.approx(80, rel=1e-5)
    assert (found.diff() > 0).all()


def test_the_middle_time_is_the_seventh_power_of_the_mean_root():
    assert times([1], 3).item() == pytest.approx(
        ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7, rel=1e-5
    )
    assert times([1], 3).item() == pytest.approx(2.515, rel=1e-3)


def test_the_number_of_times_grows_from_2_to_150_and_begins_again():
    assert [num_times(step, 1000) for step in (0, 1, 250, 999, 1000, 1001)] == [
        2,
        math.ceil(math.sqrt(22.496 + 4) - 1) + 1,
        math.ceil(math.sqrt(0.25 * 22496 + 4) - 1) + 1,
        150,
        2,
        num_times(1, 1000),
    ]
    numbers = [num_times(step, 1000) for step in range(1000)]
    assert numbers == sorted(numbers)


def test_the_pairs_of_neighbouring_times_reach_from_the_first_to_the_last():
    seen = []

    def record(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    ends = torch.tensor([0.0, 1 - 2**-24])  # the least and the greatest of U[0, 1)
    zeros = torch.zeros(2, A)
    for number in range(2, 151):
        seen.clear()
        consistency_loss(record, record, zeros, zeros, ends, count(number))
        near, far = seen
        torch.testing.assert_close(near, times([0, number - 2], number))
        torch.testing.assert_close(far, times([1, number - 1], number))


def test_a_consistent_network_has_no_loss():
    # f(x, t) = 0.3 for all points of all paths: F makes up for what c_skip leaves of x.
    def network(x, t):
        t = t.unsqueeze(-1)
        c_skip = 0.25 / ((t - 0.002).square() + 0.25)
        c_out = 0.5 * (t - 0.002) / (t.square() + 0.25).sqrt()
        return (0.3 - c_skip * x) / c_out.clamp(min=1e-12)

    actions, noises = torch.full((B, A), 0.3), torch.zeros(B, A)
    uniforms = torch.linspace(0.1, 0.99, B)
    loss = consistency_loss(network, network, actions, noises, uniforms, count(20))
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_the_loss_weighs_a_pair_by_a_hundred_over_its_distance():
    def network(x, t):
        return torch.zeros_like(x)

    actions, noises = torch.zeros(1, A), torch.ones(1, A)
    loss = consistency_loss(network, network, actions, noises, torch.tensor([0.5]), count(3))
    near, far = times([1], 3).item(), times([2], 3).item()
    # With F = 0, f(t z, t) = c_skip(t) t.
    ends = [t * 0.25 / ((t - 0.002) ** 2 + 0.25) for t in (near, far)]
    assert loss.item() == pytest.approx(100 / (far - near) * (ends[1] - ends[0]) ** 2, rel=1e-4)


def test_the_loss_trains_the_network_at_the_far_time_and_nothing_at_the_near_one():
    weight, slow = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    loss = consistency_loss(
        lambda x, t: weight * x,
        lambda x, t: slow * x,
        torch.randn(B, A),
        torch.randn(B, A),
        torch.rand(B),
        count(7),
    )
    loss.backward()
    assert weight.grad is not None
    assert slow.grad is None


def test_a_sampler_begins_at_80_and_ends_at_2():
    seen = []

    def record(x, t):
        seen.append((x[0, 0].item(), t[0].item()))
        return torch.zeros_like(x)

    consistency_sample(record, torch.ones(B, 2, A))
    first = 80 * 0.25 / ((80 - 0.002) ** 2 + 0.25)
    assert seen[0] == (80, 80)
    assert seen[1] == pytest.approx((first + math.sqrt(4 - 0.002**2), 2))
    seen.clear()
    consistency_sample(record, torch.ones(B, T, A))
    assert [t for _, t in seen] == pytest.approx([80, 54, 28, 2])


def test_a_sampler_of_one_step_maps_noise_of_the_greatest_time():
    noises = torch.randn(B, 1, A)
    found = consistency_sample(wild, noises)
    wanted = consistency_function(wild, 80 * noises[:, 0], torch.full((B,), 80.0))
    torch.testing.assert_close(found, wanted)


def test_the_gradient_of_a_sample_passes_through_every_step():
    shifts = torch.zeros(2, requires_grad=True)

    def network(x, t):
        first = t > 40
        return torch.where(first, shifts[0], shifts[1]).unsqueeze(-1) + 0.5 * x

    consistency_sample(network, torch.randn(B, 2, A)).sum().backward()
    assert (shifts.grad.abs() > 0).all()
