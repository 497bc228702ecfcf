"""What DeFlow on floq's value adds to both; its value is tested with floq's."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.deflow_floq import DeFlowFloqConfig
from tests.agents.conftest import B, E, make_agent, make_batch, make_noises

ROUTES = {
    "floq/loss": ({"floq"}, ("floq",)),
    "critic/loss": ({"critic"}, ("critic",)),
    "flow/loss": ({"bc_flow"}, ("flow",)),
    "actor/q_loss": ({"refinement"}, ("refinement",)),
    "actor/penalty": ({"refinement"}, ("refinement",)),
    "alpha/loss": ({"log_alpha"}, ()),
}
N = 3
SMALL = {"noise_samples": N, "critic_flow_steps": 2, "flow_steps": 2, "floq_depth": 2}


def test_each_draw_has_a_refined_next_action_of_its_own(kind, sharing, monkeypatch):
    agent = make_agent(kind, sharing, "deflow_floq")
    batch, noises, seen = make_batch(kind), make_noises(agent), []

    def integrate(features, actions, starts, steps):
        seen.append(actions)
        return torch.zeros(E, B, N)

    monkeypatch.setattr(agent.target_floq, "integrate", integrate)
    agent.target_returns(batch, noises)
    features = agent.encoder(batch.next_observations)
    expected = [agent.policy(features, noises.next_actions[:, j])[0] for j in range(N)]
    torch.testing.assert_close(seen[0], torch.stack(expected, 1), rtol=1e-5, atol=1e-5)


def test_the_actors_losses_are_those_of_deflow():
    ours, theirs = make_agent("state", algo="deflow_floq"), make_agent("state", flow_steps=2)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    batch, noises = make_batch("state"), make_noises(ours)
    wanted = make_noises(theirs)._replace(
        flow=noises.flow, times=noises.times, base_action=noises.base_action
    )
    losses, expected = ours(batch, noises)[0], theirs(batch, wanted)[0]
    for name in ("flow/loss", "actor/q_loss", "actor/penalty", "alpha/loss"):
        torch.testing.assert_close(losses[name], expected[name])


def test_a_frozen_base_flow_has_no_loss():
    agent = make_agent("pixels", algo="deflow_floq", freeze_bc_flow=True)
    losses, _ = agent(make_batch("pixels"), make_noises(agent))
    assert set(losses) == ROUTES.keys() - {"flow/loss"}


def test_max_q_chooses_by_the_distilled_critic(kind):
    agent = make_agent(kind, algo="deflow_floq", inference="max_q", num_proposals=4)
    observations = make_batch(kind).observations
    acts = []
    for _ in range(2):
        acts.append(agent.act(observations, generator=torch.Generator().manual_seed(3)))
        with torch.no_grad():
            agent.critic.mlp.weights[-1].neg_()
    assert not torch.equal(*acts)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("critic_flow_steps", 0),
        ("noise_samples", 0),
        ("noise_coverage", -0.1),
        ("floq_depth", 0),
        ("target_divergence", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        DeFlowFloqConfig(**{field: value})
