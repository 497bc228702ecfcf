"""FQL's own mathematics: distillation, what climbs Q, and what its target is made of."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.fql import FQLConfig
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "flow/loss": ({"bc_flow"}, ("flow",)),
    "actor/distill_loss": ({"one_step"}, ("actor",)),
    "actor/q_loss": ({"one_step"}, ("actor",)),
}


def fql(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "fql", **changes)


def set_values(critic, values):
    """Make an ensemble constant functions."""
    with torch.no_grad():
        critic.mlp.weights[-1].zero_()
        critic.mlp.biases[-1].copy_(torch.tensor(values).view(2, 1, 1))


def set_output(network, output):
    """Make a network of actions a constant."""
    with torch.no_grad():
        network.mlp.out.weight.zero_()
        network.mlp.out.bias.copy_(torch.tensor(output))


def test_the_distillation_is_a_mean_over_dimensions_of_the_policy_before_clipping():
    agent = fql(alpha=10.0)
    set_output(agent.one_step, [0.5, 3.0, -2.0])
    set_output(agent.bc_flow, [50.0, 50.0, -50.0])  # so that the flow ends at 1, 1, -1
    losses, metrics = agent(make_batch("state"), make_noises(agent))
    wanted = (0.5**2 + 2.0**2 + 1.0**2) / 3
    assert metrics["actor/distance"].item() == pytest.approx(wanted)
    assert losses["actor/distill_loss"].item() == pytest.approx(10 * wanted)


def test_flow_and_policy_start_from_the_same_noise(kind, sharing):
    agent = fql(kind, sharing)
    batch, noises = make_batch(kind), make_noises(agent)
    with torch.no_grad():
        features = agent.encoder(batch.observations)
        outputs = agent.one_step(features["actor"], noises.policy)
        wanted = (outputs - agent.flow_actions(features["flow"], noises.policy)).square().mean()
    torch.testing.assert_close(agent(batch, noises)[1]["actor/distance"], wanted)


def test_the_policy_climbs_the_mean_of_the_online_critics_at_its_clipped_actions():
    agent = fql(q_agg="min")
    batch, noises = make_batch("state"), make_noises(agent)
    noises = noises._replace(policy=noises.policy * 10)  # so that some actions are clipped
    with torch.no_grad():
        outputs = agent.one_step(batch.observations, noises.policy)
        wanted = -agent.critic(batch.observations, outputs.clamp(-1, 1)).mean()
    assert outputs.abs().max() > 1
    torch.testing.assert_close(agent(batch, noises)[0]["actor/q_loss"].detach(), wanted)


@pytest.mark.parametrize(("normalize", "wanted"), [(False, 30.0), (True, 1.0)])
def test_q_is_divided_by_its_size_where_asked(normalize, wanted):
    agent = fql(normalize_q_loss=normalize)
    set_values(agent.critic, [-20.0, -40.0])
    losses, _ = agent(make_batch("state"), make_noises(agent))
    assert losses["actor/q_loss"].item() == pytest.approx(wanted)


@pytest.mark.parametrize(("q_agg", "next_value"), [("mean", 20.0), ("min", 10.0)])
def test_the_targets_aggregation_is_the_tasks(q_agg, next_value):
    agent = fql(q_agg=q_agg, discount=0.9)
    set_values(agent.critic, [0.0, 0.0])
    set_values(agent.target_critic, [10.0, 30.0])
    batch = make_batch("state")._replace(rewards=torch.ones(B), masks=torch.ones(B))
    losses, _ = agent(batch, make_noises(agent))
    assert losses["critic/loss"].item() == pytest.approx((1 + 0.9 * next_value) ** 2, rel=1e-5)


def test_the_target_judges_an_action_of_the_one_step_policy(kind, sharing):
    agent = fql(kind, sharing, discount=0.5)
    batch, noises = make_batch(kind), make_noises(agent)
    with torch.no_grad():
        for slow in (agent.target_critic, agent.encoder.targets):
            for parameter in slow.parameters():
                parameter.mul_(1.5)
        next_features = agent.features(batch.next_observations, "actor")
        next_actions = agent.one_step(next_features, noises.next_action).clamp(-1, 1)
        slow_features = agent.encoder.encode_target(batch.next_observations)
        next_q = agent.target_critic(slow_features, next_actions).mean(0)
        target = batch.rewards + 0.5 * batch.masks * next_q
        q = agent.critic(agent.features(batch.observations, "critic"), batch.actions)
        wanted = (q - target).square().mean()
    torch.testing.assert_close(agent(batch, noises)[0]["critic/loss"].detach(), wanted)


def test_acting_is_one_clipped_step_from_noise():
    agent = fql()
    set_output(agent.one_step, [0.25, 2.0, -2.0])
    acted = agent.act(make_batch("state").observations)
    torch.testing.assert_close(acted, torch.tensor([0.25, 1.0, -1.0]).expand(B, A))


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -1.0), ("alpha", float("nan")), ("flow_steps", 0)]
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        FQLConfig(**{field: value})
