"""Shortcut models against fields whose steps are known in closed form."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.shortcut import (
    consistency_levels,
    grid_times,
    shortcut_loss,
    shortcut_sample,
)

B, A = 7, 3


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    actions, noises = (torch.randn(B, A, generator=generator) for _ in "ab")
    return actions, noises, torch.rand(B, generator=generator)


def test_a_step_of_a_level_begins_at_a_multiple_of_its_length():
    uniforms = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.999])
    for level, expected in (
        (0.0, [0, 0, 0, 0, 0]),
        (1.0, [0, 0, 0, 0.5, 0.5]),
        (2.0, [0, 0, 0.25, 0.5, 0.75]),
    ):
        times = grid_times(uniforms, torch.full((5,), level))
        assert times.tolist() == expected


@pytest.mark.parametrize(
    ("size", "finest", "expected"),
    [
        (7, 3, [2, 2, 1, 1, 0, 0, 0]),
        (6, 3, [2, 2, 1, 1, 0, 0]),
        (2, 3, [2, 1]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_the_batch_is_split_evenly_over_levels_and_the_rest_has_the_coarsest(
    size, finest, expected
):
    assert consistency_levels(size, finest, torch.device("cpu")).tolist() == expected


def test_the_target_of_the_consistency_is_the_mean_of_two_half_steps_of_the_slow_field():
    actions, noises, uniforms = draws()
    levels = consistency_levels(B, 3, actions.device)
    times = grid_times(uniforms, levels)

    def slow(x, t, h):
        return 0.3 * x + t.unsqueeze(-1) - 0.1 * h.unsqueeze(-1)

    expected = []
    for row in range(B):  # a row at a time, in plain numbers
        t, h = times[row].item(), levels[row].item()
        half = 0.5 ** (h + 1)
        x = (1 - t) * noises[row] + t * actions[row]
        first = 0.3 * x + t - 0.1 * (h + 1)
        second = 0.3 * (x + half * first) + t + half - 0.1 * (h + 1)
        expected.append((first + second) / 2)
    loss = shortcut_loss(lambda x, t, h: torch.zeros_like(x), slow, actions, noises, times, levels)
    torch.testing.assert_close(loss, torch.stack(expected).square().mean())


def test_a_field_whose_steps_agree_has_no_consistency_loss():
    actions, noises, uniforms = draws()
    levels = consistency_levels(B, 3, actions.device)

    def velocity(x, t, h):  # of dx/dt = x: mean velocity x (e^d - 1) / d over a step d
        step = torch.exp2(-h).unsqueeze(-1)
        return x * torch.expm1(step) / step

    loss = shortcut_loss(velocity, velocity, actions, noises, grid_times(uniforms, levels), levels)
    assert loss.item() == pytest.approx(0, abs=1e-10)


def test_the_consistency_trains_the_field_and_not_its_slow_copy():
    actions, noises, uniforms = draws()
    online, slow = (torch.nn.Parameter(torch.tensor(c)) for c in (0.4, 0.7))
    levels = consistency_levels(B, 3, actions.device)
    loss = shortcut_loss(
        lambda x, t, h: online * x,
        lambda x, t, h: slow * x,
        actions,
        noises,
        grid_times(uniforms, levels),
        levels,
    )
    loss.backward()
    assert online.grad.abs() > 0
    assert slow.grad is None


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_k_steps_of_a_linear_field_end_where_compound_interest_does(level):
    _, noises, _ = draws()
    rate, steps = 0.7, 2**level
    seen = []

    def velocity(x, t, h):
        seen.append((t[0].item(), h[0].item()))
        return rate * x

    ends = shortcut_sample(velocity, noises, torch.tensor([float(level)]), 8)
    torch.testing.assert_close(ends, noises * (1 + rate / steps) ** steps)
    assert seen[:steps] == [(i / steps, level) for i in range(steps)]


def test_rows_may_have_numbers_of_steps_of_their_own():
    _, noises, _ = draws()
    levels = torch.tensor([0.0, 1, 2, 3, 0, 1, 2])

    def velocity(x, t, h):
        return x + t.unsqueeze(-1)

    together = shortcut_sample(velocity, noises, levels, 8)
    for row, level in enumerate(levels):
        alone = shortcut_sample(velocity, noises[row : row + 1], level.view(1), 8)
        torch.testing.assert_close(together[row : row + 1], alone)


def test_the_sample_is_differentiable_through_its_k_steps_alone():
    noises = torch.ones(1, 1)
    for level in range(4):
        rate = torch.tensor(0.7, requires_grad=True)
        ends = shortcut_sample(
            lambda x, t, h, rate=rate: rate * x, noises, torch.tensor([float(level)]), 8
        )
        (slope,) = torch.autograd.grad(ends.sum(), rate)
        steps = 2**level
        assert slope.item() == pytest.approx((1 + 0.7 / steps) ** (steps - 1), rel=1e-5)
