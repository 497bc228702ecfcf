"""IQL's own mathematics: expectile, weights, and targets without any policy."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.agents.iql import IQLConfig
from deflow_vision.losses import expectile_loss
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "value/loss": ({"value"}, ("value",)),
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/loss": ({"actor"}, ("actor",)),
}


def iql(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "iql", **changes)


def set_values(agent, q=(0.0, 0.0), target_q=(0.0, 0.0), value=0.0):
    """Make critics and V constant functions."""
    with torch.no_grad():
        for network, values in ((agent.critic, q), (agent.target_critic, target_q)):
            network.mlp.weights[-1].zero_()
            network.mlp.biases[-1].copy_(torch.tensor(values).view(2, 1, 1))
        agent.value.mlp.out.weight.zero_()
        agent.value.mlp.out.bias.fill_(value)


def losses_of(agent, batch=None):
    return agent(batch or make_batch("state"), make_noises(agent))


@pytest.mark.parametrize(("value", "weight"), [(-1.0, 0.9), (5.0, 0.1)])
def test_v_follows_the_least_slow_critic_by_the_expectile(value, weight):
    agent = iql(expectile=0.9)
    set_values(agent, q=(70.0, 80.0), target_q=(1.0, 4.0), value=value)
    losses, _ = losses_of(agent)
    assert losses["value/loss"].item() == pytest.approx(weight * (1.0 - value) ** 2, rel=1e-5)


def test_the_target_is_the_online_value_and_the_members_errors_add_up():
    agent = iql(discount=0.9)
    set_values(agent, q=(1.0, 2.0), target_q=(50.0, 60.0), value=10.0)
    batch = make_batch("state")._replace(rewards=torch.ones(B), masks=torch.ones(B))
    losses, _ = losses_of(agent, batch)
    assert losses["critic/loss"].item() == pytest.approx(9.0**2 + 8.0**2, rel=1e-5)


@pytest.mark.parametrize(
    ("q", "value", "weight"),
    [((1.0, 3.0), 0.5, math.exp(0.25)), ((-9.0, 9.0), 0.0, math.exp(-4.5)), ((1e6, 1e6), 0, 100)],
)
def test_the_weight_takes_the_least_online_critic_and_stops_at_100(q, value, weight):
    agent = iql(alpha=0.5)
    set_values(agent, q=q, target_q=(50.0, 60.0), value=value)
    batch = make_batch("state")
    losses, metrics = losses_of(agent, batch)
    assert metrics["actor/weight"].item() == pytest.approx(weight, rel=1e-5)
    errors = (agent.actor(batch.observations) - batch.actions).square().sum(-1)
    wanted = weight * errors.mean().item() / 2
    assert losses["actor/loss"].item() == pytest.approx(wanted, rel=1e-4)


def test_every_network_reads_its_own_encoder_and_the_slow_critic_a_slow_one(kind, sharing):
    agent = iql(kind, sharing, discount=0.5, expectile=0.9)
    batch = make_batch(kind)
    with torch.no_grad():
        for slow in (agent.target_critic, agent.encoder.targets):
            for parameter in slow.parameters():
                parameter.mul_(1.5)
        features = agent.encoder(batch.observations)
        slow_features = agent.encoder.encode_target(batch.observations)
        slow_q = agent.target_critic(slow_features, batch.actions).min(0).values
        next_values = agent.value(agent.features(batch.next_observations, "value"))
        target = batch.rewards + 0.5 * batch.masks * next_values
        errors = agent.critic(features["critic"], batch.actions) - target
        differences = slow_q - agent.value(features["value"])
    losses, _ = losses_of(agent, batch)
    wanted = expectile_loss(differences, 0.9)
    torch.testing.assert_close(losses["value/loss"].detach(), wanted)
    torch.testing.assert_close(losses["critic/loss"].detach(), errors.square().mean(1).sum())


def test_each_sample_counts_by_its_own_weight(kind, sharing):
    agent = iql(kind, sharing, alpha=0.5)
    batch = make_batch(kind)
    with torch.no_grad():
        features = agent.encoder(batch.observations)
        q = agent.critic(features["critic"], batch.actions).min(0).values
        weights = (0.5 * (q - agent.value(features["value"]))).exp()
        errors = (agent.actor(features["actor"]) - batch.actions).square().sum(-1)
    assert weights.std() > 0.1
    assert weights.max() < 100
    losses, _ = losses_of(agent, batch)
    torch.testing.assert_close(losses["actor/loss"].detach(), (weights * errors).mean() / 2)


def test_evaluation_takes_the_mean_and_exploration_adds_noise_of_unit_variance():
    agent = iql()
    with torch.no_grad():
        agent.actor.mlp.out.weight.zero_()
        agent.actor.mlp.out.bias.copy_(torch.tensor([0.5, 3.0, -3.0]))
    observations = make_batch("state").observations
    mean = torch.tensor([0.5, 3.0, -3.0]).expand(B, A)
    torch.testing.assert_close(agent.act(observations), mean.clamp(-1, 1))
    noises = torch.randn(B, A, generator=torch.Generator().manual_seed(5))
    explored = agent.act(observations, explore=True, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(explored, (mean + noises).clamp(-1, 1))


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -1.0), ("expectile", 1.0), ("expectile", 0.0)]
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        IQLConfig(**{field: value})
