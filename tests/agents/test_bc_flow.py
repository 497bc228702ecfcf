"""BC-flow's own mathematics, and that it is DeFlow's base flow."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.bc_flow import BCFlowConfig
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {"flow/loss": ({"bc_flow"}, ("flow",))}


def test_a_constant_field_gives_the_loss_and_the_actions_worked_out_by_hand():
    agent = make_agent("state", algo="bc_flow")
    velocity = torch.tensor([0.5, 5.0, -5.0])
    with torch.no_grad():
        agent.bc_flow.mlp.out.weight.zero_()
        agent.bc_flow.mlp.out.bias.copy_(velocity)
    batch, noises = make_batch("state"), make_noises(agent)
    wanted = (velocity - (batch.actions - noises.flow)).square().mean()
    torch.testing.assert_close(agent(batch, noises)[0]["flow/loss"].detach(), wanted)
    acted = agent.act(batch.observations, generator=torch.Generator().manual_seed(2))
    starts = torch.randn(B, A, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(acted, (starts + velocity).clamp(-1, 1))


def test_its_loss_and_samples_are_those_of_deflows_base_flow():
    flow, deflow = make_agent("pixels", algo="bc_flow"), make_agent("pixels", algo="deflow")
    deflow.load_bc_flow(flow.state_dict())
    batch = make_batch("pixels")
    ours, theirs = make_noises(flow), make_noises(deflow)
    theirs = theirs._replace(flow=ours.flow, times=ours.times)
    loss = flow(batch, ours)[0]["flow/loss"]
    torch.testing.assert_close(loss, deflow(batch, theirs)[0]["flow/loss"])
    features = deflow.features(batch.observations, "flow")
    starts = torch.randn(B, A, generator=torch.Generator().manual_seed(2))
    acted = flow.act(batch.observations, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(acted, deflow.base_actions(features, starts))


def test_a_flow_without_steps_is_refused_by_name():
    with pytest.raises(ValueError, match="flow_steps"):
        BCFlowConfig(flow_steps=0)
