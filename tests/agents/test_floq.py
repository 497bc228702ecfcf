"""floq's own mathematics; that of its value also in DeFlow on floq's value."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.floq import FloqConfig
from tests.agents.conftest import A, B, E, make_agent, make_batch, make_noises

ROUTES = {
    "floq/loss": ({"floq"}, ("floq",)),
    "critic/loss": ({"critic"}, ("critic",)),
    "flow/loss": ({"bc_flow"}, ("flow",)),
    "actor/distill_loss": ({"one_step"}, ("actor",)),
    "actor/q_loss": ({"one_step"}, ("actor",)),
}
N = 3
SMALL = {"noise_samples": N, "critic_flow_steps": 2, "flow_steps": 2, "floq_depth": 2}


@pytest.fixture(params=["floq", "deflow_floq"])
def algo(request):
    return request.param


def constant(field, *velocities):
    """Make each member's velocity a constant."""
    with torch.no_grad():
        field.mlp.weights[-1].zero_()
        field.mlp.biases[-1].copy_(torch.tensor(velocities).view(-1, 1, 1))


def losses_of(agent, batch, noises):
    return agent(batch, noises)[0]


def test_the_target_is_a_mean_over_draws_of_the_aggregate_over_members(algo, monkeypatch):
    batch = make_batch("state")
    for how, aggregate in (("mean", torch.mean), ("min", torch.amin)):
        agent = make_agent("state", algo=algo, q_agg=how)
        noises = make_noises(agent)
        returns = torch.randn(E, B, N)
        monkeypatch.setattr(agent.target_floq, "integrate", lambda *_, returns=returns: returns)
        expected = batch.rewards + 0.99 * batch.masks * aggregate(returns, 0).mean(1)
        torch.testing.assert_close(agent.target_returns(batch, noises), expected)


def test_the_targets_integral_starts_at_draws_of_its_own_and_takes_k_steps(algo, monkeypatch):
    agent = make_agent("state", algo=algo)
    noises, seen = make_noises(agent), []

    def integrate(features, actions, starts, steps):
        seen.append((starts, steps))
        return torch.zeros(E, B, N)

    monkeypatch.setattr(agent.target_floq, "integrate", integrate)
    agent.target_returns(make_batch("state"), noises)
    ((starts, steps),) = seen
    torch.testing.assert_close(starts, -10 * (1 - noises.next_starts))  # 0.1 of [-100, 0]
    assert steps == 2


def test_the_fields_loss_is_a_sum_over_draws_and_a_mean_over_members_and_states(algo):
    agent = make_agent("state", algo=algo)
    batch, noises = make_batch("state"), make_noises(agent)
    constant(agent.floq, 3.0, -4.0)
    ends = agent.target_returns(batch, noises).unsqueeze(1)
    wanted = ends + 10 * (1 - noises.starts)  # y - z0
    expected = sum(((v - wanted) ** 2).sum() for v in (3.0, -4.0)) / (E * B)
    torch.testing.assert_close(losses_of(agent, batch, noises)["floq/loss"], expected)


def test_the_path_of_a_return_runs_straight_from_its_start_to_the_target(algo, monkeypatch):
    agent = make_agent("state", algo=algo)
    batch, noises, seen = make_batch("state"), make_noises(agent), []

    def forward(features, actions, returns, times):
        seen.append(returns)
        return torch.zeros(E, B, N)

    monkeypatch.setattr(agent.floq, "forward", forward)
    features = agent.encoder(batch.observations)
    for time in (0.0, 0.25, 1.0):
        agent.floq_loss(batch, features, noises._replace(return_times=torch.full((B, N), time)))
    start, quarter, end = seen
    torch.testing.assert_close(start, -10 * (1 - noises.starts))
    torch.testing.assert_close(end, agent.target_returns(batch, noises).unsqueeze(1).expand(B, N))
    torch.testing.assert_close(quarter, 0.75 * start + 0.25 * end)


def test_the_critic_distils_the_mean_integral_of_the_online_field_from_the_same_starts(algo):
    agent = make_agent("state", algo=algo)
    constant(agent.floq, -7.0, 2.0)
    with torch.no_grad():
        agent.critic.mlp.weights[-1].zero_()
    noises = make_noises(agent)
    values = (-10 * (1 - noises.starts)).mean(1) - 2.5
    loss = losses_of(agent, make_batch("state"), noises)["critic/loss"]
    torch.testing.assert_close(loss, values.square().mean())


def test_the_slow_field_and_its_encoder_are_read_by_the_target_alone(algo, kind, sharing):
    agent = make_agent(kind, sharing, algo)
    batch, noises = make_batch(kind), make_noises(agent)
    before = losses_of(agent, batch, noises)
    with torch.no_grad():
        slow = agent.encoder.targets if kind == "pixels" else agent.target_floq
        for parameter in slow.parameters():
            parameter.add_(0.5)
    after = losses_of(agent, batch, noises)
    assert {name for name in before if before[name] != after[name]} == {"floq/loss"}


def test_only_the_field_has_a_slow_copy(algo):
    agent = make_agent("pixels", "separate", algo)
    assert {name for name, _ in agent.named_children() if "target" in name} == {"target_floq"}
    assert set(agent.encoder.targets) == {"floq"}


def test_no_bootstrap_where_the_mask_is_zero(algo):
    agent = make_agent("state", algo=algo)
    batch = make_batch("state")._replace(masks=torch.zeros(B))
    torch.testing.assert_close(agent.target_returns(batch, make_noises(agent)), batch.rewards)


def test_bfloat16_does_not_quantise_a_large_return(algo, kind):
    agent = make_agent(kind, algo=algo, noise_coverage=0.0)
    constant(agent.floq, -150.3, -150.3)
    constant(agent.target_floq, -150.3, -150.3)
    constant(agent.critic, -150.3, -150.3)
    batch = make_batch(kind)._replace(rewards=torch.zeros(B), masks=torch.ones(B))
    with torch.autocast("cpu", torch.bfloat16):
        losses, metrics = agent(batch, make_noises(agent))
    assert metrics["floq/target"].item() == pytest.approx(-0.99 * 150.3, abs=0.01)
    assert losses["critic/loss"].item() == pytest.approx(0, abs=1e-6)
    assert {value.dtype for value in (*losses.values(), *metrics.values())} == {torch.float32}


def test_the_spread_is_the_deviation_over_draws(algo):
    agent = make_agent("state", algo=algo)
    constant(agent.floq, -7.0, 2.0)
    noises = make_noises(agent)
    _, metrics = agent(make_batch("state"), noises)
    expected = (10 * noises.starts).var(1, correction=0).mean().sqrt()
    torch.testing.assert_close(metrics["floq/spread"], expected)


def test_the_field_has_layers_of_its_own_number(algo):
    agent = make_agent("state", algo=algo, floq_depth=3)
    assert [weight.shape[-1] for weight in agent.floq.mlp.weights] == [11, 11, 11, 1]
    assert [weight.shape[-1] for weight in agent.critic.mlp.weights] == [11, 13, 1]


def test_each_draw_has_a_next_action_of_its_own(monkeypatch):
    agent = make_agent("state", algo="floq")
    batch, noises, seen = make_batch("state"), make_noises(agent), []

    def integrate(features, actions, starts, steps):
        seen.append(actions)
        return torch.zeros(E, B, N)

    monkeypatch.setattr(agent.target_floq, "integrate", integrate)
    agent.target_returns(batch, noises)
    features = agent.features(batch.next_observations, "actor")
    expected = [agent.policy(features, noises.next_actions[:, j]) for j in range(N)]
    torch.testing.assert_close(seen[0], torch.stack(expected, 1))


def test_the_policy_imitates_the_flow_of_its_own_noise_before_clipping(monkeypatch):
    agent = make_agent("state", algo="floq", alpha=7.0)
    monkeypatch.setattr(agent.one_step, "forward", lambda features, x: 2 * x)
    monkeypatch.setattr(agent.bc_flow, "forward", lambda features, x, t: torch.zeros_like(x))
    noises = make_noises(agent)
    losses, metrics = agent(make_batch("state"), noises)
    distance = (2 * noises.policy - noises.policy.clamp(-1, 1)).square().mean()
    torch.testing.assert_close(metrics["actor/distance"], distance)
    torch.testing.assert_close(losses["actor/distill_loss"], 7 * distance)


def test_the_policy_climbs_the_mean_of_the_distilled_critic():
    agent = make_agent("state", algo="floq", q_agg="min")
    constant(agent.critic, 3.0, 5.0)
    assert losses_of(agent, make_batch("state"), make_noises(agent))["actor/q_loss"] == -4


def test_the_normaliser_makes_the_q_loss_independent_of_the_critics_scale():
    agent = make_agent("state", algo="floq", normalize_q_loss=True)
    batch, noises = make_batch("state"), make_noises(agent)
    before = losses_of(agent, batch, noises)["actor/q_loss"]
    with torch.no_grad():
        agent.critic.mlp.weights[-1].mul_(5)
    torch.testing.assert_close(losses_of(agent, batch, noises)["actor/q_loss"], before)


def test_acting_is_one_step_of_the_policy():
    agent = make_agent("state", algo="floq")
    observations = make_batch("state").observations
    acted = agent.act(observations, generator=torch.Generator().manual_seed(3))
    noises = torch.randn(B, A, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(acted, agent.policy(observations, noises))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -1.0),
        ("flow_steps", 0),
        ("critic_flow_steps", 0),
        ("noise_samples", 0),
        ("noise_coverage", -0.1),
        ("floq_depth", 0),
        ("discount", 1.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        FloqConfig(**{field: value})
