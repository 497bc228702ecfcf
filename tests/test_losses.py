"""The pieces of losses, against known answers."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.losses import (
    aggregate_q,
    awr_weights,
    expectile_loss,
    global_mean,
    td_target,
)


@pytest.mark.parametrize(("how", "wanted"), [("mean", [2.0, 0.0]), ("min", [1.0, -4.0])])
def test_members_are_aggregated_sample_by_sample(how, wanted):
    q = torch.tensor([[1.0, 4.0], [3.0, -4.0]])
    assert aggregate_q(q, how).tolist() == wanted


def test_the_target_bootstraps_where_the_mask_allows_and_carries_no_gradient():
    values = torch.tensor([10.0, 10.0], requires_grad=True)
    target = td_target(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), values, 0.9)
    assert target.tolist() == [10.0, 2.0]
    assert not target.requires_grad


def test_the_expectile_loss_weighs_the_signs_of_the_differences():
    loss = expectile_loss(torch.tensor([2.0, -3.0, 0.0]), 0.9)
    assert loss.item() == pytest.approx((0.9 * 4 + 0.1 * 9) / 3)


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_the_expectile_loss_is_least_at_the_expectile(expectile):
    q = torch.tensor([0.0, 1.0, 5.0])
    value = torch.tensor(0.0, requires_grad=True)
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(expectile_loss(q - value, expectile), value)
        value.data -= 0.1 * gradient
    # sum of tau (q - v)+ equals the sum of (1 - tau) (v - q)+
    above = (q - value).clamp(min=0).sum().item() * expectile
    below = (value - q).clamp(min=0).sum().item() * (1 - expectile)
    assert above == pytest.approx(below, abs=1e-4)
    assert value.item() == pytest.approx({0.5: 2.0, 0.9: 46 / 11}[expectile], abs=1e-3)


def test_weights_are_exponential_advantages_with_a_limit_and_without_gradient():
    advantages = torch.tensor([0.0, 2.0, -2.0, 1e9], requires_grad=True)
    weights = awr_weights(advantages, 0.5)
    wanted = [1.0, math.e, 1 / math.e, 100.0]
    assert weights.tolist() == pytest.approx(wanted)
    assert not weights.requires_grad


def test_a_global_mean_is_constant_for_the_gradient():
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    mean = global_mean(x)
    assert mean.item() == 2.0
    assert not mean.requires_grad


def test_a_global_mean_may_be_over_one_dimension():
    x = torch.tensor([[1.0, 5.0], [3.0, 9.0]])
    assert global_mean(x, 0).tolist() == [2.0, 7.0]
