"""RLPD's own mathematics: entropy and its weight, the target's subset, how it acts."""

from __future__ import annotations

import math

import pytest
import torch

from deflow_vision.agents.rlpd import RLPDConfig
from deflow_vision.config import compose
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/loss": ({"actor"}, ("actor",)),
    "entropy/loss": ({"log_entropy_weight"}, ()),
}


def rlpd(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "rlpd", **changes)


def constant(network, values):
    """Make an ensemble's members, or an actor's mean and log std, the same whatever they see."""
    mlp = network.mlp
    out = (
        (mlp.out.weight, mlp.out.bias) if hasattr(mlp, "out") else (mlp.weights[-1], mlp.biases[-1])
    )
    with torch.no_grad():
        out[0].zero_()
        out[1].copy_(torch.as_tensor(values).view(out[1].shape))


def normal_entropy(std):
    """Nats of a Gaussian of one dimension."""
    return math.log(std) + math.log(2 * math.pi * math.e) / 2


def losses_of(agent, noises=None, batch=None):
    return agent(batch or make_batch("state"), noises or make_noises(agent), None)


@pytest.mark.parametrize(("q_agg", "value"), [("mean", -5.0), ("min", -7.0)])
def test_the_target_aggregates_the_slow_critic_and_has_no_entropy(q_agg, value):
    agent = rlpd(q_agg=q_agg, discount=0.9)
    constant(agent.critic, [0.0, 0.0])
    constant(agent.target_critic, [-3.0, -7.0])
    batch = make_batch("state")
    target = batch.rewards + 0.9 * batch.masks * value
    loss = losses_of(agent, batch=batch)[0]["critic/loss"]
    torch.testing.assert_close(loss.detach(), target.square().mean())


def test_with_the_backup_the_target_loses_alpha_log_pi_where_it_bootstraps():
    agent = rlpd(entropy_backup=True, discount=0.9)
    constant(agent.critic, [0.0, 0.0])
    constant(agent.target_critic, [2.0, 2.0])
    with torch.no_grad():
        agent.log_entropy_weight.fill_(math.log(0.5))
    batch, noises = make_batch("state"), make_noises(agent)
    log_probs = agent.policy(batch.next_observations, noises.next_action)[1]
    target = batch.rewards + 0.9 * batch.masks * (2 - 0.5 * log_probs)
    loss = losses_of(agent, noises, batch)[0]["critic/loss"]
    torch.testing.assert_close(loss.detach(), target.square().mean().detach())


def test_the_target_takes_the_members_with_the_greatest_draws():
    agent = rlpd(num_critics=4, target_subset=2, q_agg="min", discount=0.9)
    constant(agent.critic, [0.0] * 4)
    constant(agent.target_critic, [-1.0, -2.0, -4.0, -8.0])
    batch = make_batch("state")
    for members, least in (([0.9, 0.2, 0.8, 0.1], -4.0), ([0.6, 0.7, 0.1, 0.2], -2.0)):
        noises = make_noises(agent)._replace(members=torch.tensor([members]))
        target = batch.rewards + 0.9 * batch.masks * least
        loss = losses_of(agent, noises, batch)[0]["critic/loss"]
        torch.testing.assert_close(loss.detach(), target.square().mean())


def test_all_streams_and_processes_share_one_subset(monkeypatch):
    agent = rlpd(num_critics=3, target_subset=1, discount=0.9)
    constant(agent.critic, [0.0] * 3)
    constant(agent.target_critic, [-1.0, -2.0, -4.0])
    streams = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.2, 0.8]])  # each would choose another
    monkeypatch.setattr(
        "deflow_vision.agents.rlpd.global_mean", lambda x, dim: torch.tensor([0.1, 0.9, 0.2])
    )
    batch = make_batch("state")
    loss = losses_of(agent, make_noises(agent)._replace(members=streams), batch)[0]["critic/loss"]
    target = batch.rewards - 0.9 * 2 * batch.masks
    torch.testing.assert_close(loss.detach(), target.square().mean())


def test_the_policy_climbs_the_mean_of_all_members_and_pays_for_log_pi():
    agent = rlpd(num_critics=4, target_subset=1, q_agg="min")
    constant(agent.critic, [1.0, 2.0, 4.0, 9.0])
    with torch.no_grad():
        agent.log_entropy_weight.fill_(math.log(0.3))
    batch, noises = make_batch("state"), make_noises(agent)
    log_probs = agent.policy(batch.observations, noises.action)[1].detach()
    losses, metrics = losses_of(agent, noises, batch)
    torch.testing.assert_close(losses["actor/loss"].detach(), 0.3 * log_probs.mean() - 4)
    torch.testing.assert_close(metrics["entropy/value"], -log_probs.mean())
    assert metrics["actor/q"].item() == pytest.approx(4)


@pytest.mark.parametrize(("log_std", "rises"), [(-4.0, True), (-0.5, False)])
def test_the_weight_rises_where_the_entropy_is_below_its_target(log_std, rises):
    agent = rlpd()
    constant(agent.actor, [0.0] * A + [log_std] * A)
    losses, metrics = losses_of(agent)
    assert (metrics["entropy/value"] < -0.5 * A) == rises
    (gradient,) = torch.autograd.grad(losses["entropy/loss"], agent.log_entropy_weight)
    assert (gradient < 0) == rises  # descent adds -gradient


def test_the_weights_loss_is_alpha_times_the_excess_of_entropy_over_all_dimensions():
    agent = rlpd(target_entropy=-0.5)
    with torch.no_grad():
        agent.log_entropy_weight.fill_(math.log(3.0))
    losses, metrics = losses_of(agent)
    wanted = 3 * (metrics["entropy/value"] + 0.5 * A)
    torch.testing.assert_close(losses["entropy/loss"].detach(), wanted)


def test_the_weight_starts_at_one_and_the_deviations_near_it():
    agent = rlpd()
    assert losses_of(agent)[1]["entropy/weight"] == 1
    assert agent.actor(make_batch("state").observations)[1].abs().max() < 0.5


def test_a_narrow_policys_entropy_is_its_gaussians():
    agent = rlpd()
    constant(agent.actor, [0.0] * A + [-4.0] * A)
    noises = agent.sample_noises(20_000, torch.Generator().manual_seed(0))
    _, metrics = losses_of(agent, noises, make_batch("state", size=20_000))
    assert metrics["entropy/value"].item() == pytest.approx(
        A * normal_entropy(math.exp(-4)), abs=0.03
    )


def test_evaluation_takes_tanh_of_the_mean_and_exploration_a_sample(kind):
    agent = rlpd(kind)
    constant(agent.actor, [0.0, 0.5, -2.0] + [-1.0] * A)
    observations = make_batch(kind).observations
    wanted = torch.tensor([0.0, 0.5, -2.0]).tanh().expand(B, A)
    torch.testing.assert_close(agent.act(observations), wanted)
    generator = torch.Generator().manual_seed(3)
    noises = torch.randn(B, A, generator=torch.Generator().manual_seed(3))
    explored = agent.act(observations, explore=True, generator=generator)
    points = torch.tensor([0.0, 0.5, -2.0]) + math.exp(-1) * noises
    torch.testing.assert_close(explored, points.tanh())


@pytest.mark.parametrize(
    ("task", "q_agg", "discount"),
    [
        ("cube-double-play", "mean", 0.99),
        ("humanoidmaze-medium-navigate", "mean", 0.995),
        ("antmaze-large-play-v2", "mean", 0.99),
        ("pen-cloned-v1", "min", 0.99),
    ],
)
def test_the_tasks_switches_are_the_only_settings_of_a_task(task, q_agg, discount):
    assert compose(task, "rlpd").agent == RLPDConfig(q_agg=q_agg, discount=discount)


def test_there_is_no_offline_phase_and_batches_are_balanced():
    config = compose("cube-double-play", "rlpd")
    assert (config.offline_steps, config.online.sampling) == (0, "balanced")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_subset", 0),
        ("target_subset", 3),
        ("target_entropy", float("nan")),
        ("num_critics", 0),
        ("tau", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        RLPDConfig(**{field: value})
