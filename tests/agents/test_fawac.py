"""FAWAC's own mathematics: its weights, its value, and what its target is made of."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.agents.fawac import FAWACConfig
from deflow_vision.flow import flow_matching_loss
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "value/loss": ({"value"}, ("value",)),
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/loss": ({"flow"}, ("flow",)),
}


def fawac(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "fawac", **changes)


def set_values(agent, q=(0.0, 0.0), target_q=(0.0, 0.0), value=0.0):
    """Make critics and V constant functions."""
    with torch.no_grad():
        for network, values in ((agent.critic, q), (agent.target_critic, target_q)):
            network.mlp.weights[-1].zero_()
            network.mlp.biases[-1].copy_(torch.tensor(values).view(2, 1, 1))
        agent.value.mlp.out.weight.zero_()
        agent.value.mlp.out.bias.fill_(value)


def errors_of(agent, batch, noises):
    """The flow-matching error of each sample, mean over dimensions."""
    t = noises.times.unsqueeze(-1)
    points = (1 - t) * noises.flow + t * batch.actions
    with torch.no_grad():
        velocities = agent.flow(batch.observations, points, noises.times)
    return (velocities - (batch.actions - noises.flow)).square().mean(-1)


def test_alpha_zero_is_a_flow_of_the_datas_actions():
    agent = fawac(alpha=0.0)
    batch, noises = make_batch("state"), make_noises(agent)
    plain = flow_matching_loss(
        lambda x, t: agent.flow(batch.observations, x, t), batch.actions, noises.flow, noises.times
    )
    losses, metrics = agent(batch, noises)
    torch.testing.assert_close(losses["actor/loss"], plain)
    assert metrics["actor/weight"] == 1


def test_each_samples_error_counts_by_its_exponential_advantage():
    agent = fawac(alpha=0.5)
    batch, noises = make_batch("state"), make_noises(agent)
    with torch.no_grad():
        q = agent.critic(batch.observations, batch.actions).mean(0)
        weights = (0.5 * (q - agent.value(batch.observations))).exp()
    assert weights.max() < 100
    assert weights.std() > 0.1
    losses, metrics = agent(batch, noises)
    wanted = (weights * errors_of(agent, batch, noises)).mean()
    torch.testing.assert_close(losses["actor/loss"].detach(), wanted)
    torch.testing.assert_close(metrics["actor/weight"], weights.mean())


@pytest.mark.parametrize(
    ("q", "value", "weight"),
    [((1.0, 3.0), 1.5, math.exp(0.25)), ((-9.0, -9.0), 0.0, math.exp(-4.5)), ((1e6, 1e6), 0, 100)],
)
def test_the_weight_takes_the_mean_critic_at_the_datas_action_and_stops_at_100(q, value, weight):
    agent = fawac(alpha=0.5)
    set_values(agent, q=q, target_q=(50.0, 60.0), value=value)
    batch, noises = make_batch("state"), make_noises(agent)
    losses, metrics = agent(batch, noises)
    assert metrics["actor/weight"].item() == pytest.approx(weight, rel=1e-5)
    wanted = weight * errors_of(agent, batch, noises).mean().item()
    assert losses["actor/loss"].item() == pytest.approx(wanted, rel=1e-4)


def test_v_regresses_to_every_slow_critic_at_the_datas_action():
    agent = fawac()
    set_values(agent, q=(70.0, 80.0), target_q=(1.0, 4.0), value=2.0)
    losses, metrics = agent(make_batch("state"), make_noises(agent))
    assert losses["value/loss"].item() == pytest.approx(((2 - 1) ** 2 + (2 - 4) ** 2) / 2)
    assert metrics["value/mean"].item() == pytest.approx(2.0)


def test_the_target_takes_the_critics_at_a_sample_of_the_policy():
    agent = fawac(discount=0.5)
    batch, noises = make_batch("state"), make_noises(agent)
    with torch.no_grad():
        next_actions = agent.policy(batch.next_observations, noises.next_action)
        next_q = agent.target_critic(batch.next_observations, next_actions).mean(0)
        target = batch.rewards + 0.5 * batch.masks * next_q
        wanted = (agent.critic(batch.observations, batch.actions) - target).square().mean()
    torch.testing.assert_close(agent(batch, noises)[0]["critic/loss"].detach(), wanted)


@pytest.mark.parametrize(("q_agg", "next_value"), [("mean", 20.0), ("min", 10.0)])
def test_the_targets_aggregation_is_the_tasks(q_agg, next_value):
    agent = fawac(q_agg=q_agg, discount=0.9)
    set_values(agent, target_q=(10.0, 30.0))
    batch = make_batch("state")._replace(rewards=torch.ones(B), masks=torch.ones(B))
    losses, _ = agent(batch, make_noises(agent))
    assert losses["critic/loss"].item() == pytest.approx((1 + 0.9 * next_value) ** 2, rel=1e-5)


def test_the_policy_clips_the_end_of_the_flow_alone():
    agent = fawac()
    with torch.no_grad():
        agent.flow.mlp.out.weight.zero_()
        agent.flow.mlp.out.bias.copy_(torch.tensor([0.5, 5.0, -5.0]))
    noises = torch.tensor([0.1, -4.5, 0.2]).expand(B, A)
    acted = agent.policy(torch.randn(B, 5), noises)
    torch.testing.assert_close(acted, torch.tensor([0.6, 0.5, -1.0]).expand(B, A))


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -1.0), ("alpha", float("nan")), ("flow_steps", 0)]
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        FAWACConfig(**{field: value})
