"""BC's own mathematics."""

from __future__ import annotations

import torch

from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {"actor/loss": ({"actor"}, ("actor",))}


def set_mean(agent, mean):
    """Make the policy's mean a constant."""
    with torch.no_grad():
        agent.actor.mlp.out.weight.zero_()
        agent.actor.mlp.out.bias.copy_(torch.tensor(mean))


def test_the_loss_is_the_negative_log_likelihood_without_its_constant():
    agent = make_agent("state", algo="bc")
    batch = make_batch("state")
    means = agent.actor(batch.observations).detach()
    density = torch.distributions.Normal(means, 1.0)
    wanted = -(density.log_prob(batch.actions) - density.log_prob(means)).sum(-1).mean()
    losses, _ = agent(batch, make_noises(agent))
    torch.testing.assert_close(losses["actor/loss"].detach(), wanted)


def test_acting_takes_the_mean_clipped_with_and_without_exploring():
    agent = make_agent("state", algo="bc")
    set_mean(agent, [0.5, 3.0, -3.0])
    wanted = torch.tensor([0.5, 1.0, -1.0]).expand(B, A)
    for explore in (False, True):
        acted = agent.act(make_batch("state").observations, explore=explore)
        torch.testing.assert_close(acted, wanted)


def test_the_first_actions_are_near_zero():
    agent = make_agent("state", algo="bc", hidden_dims=(64, 64))
    means = agent.act(make_batch("state").observations)
    assert 0 < means.abs().max() < 0.3
