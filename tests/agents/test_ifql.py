"""IFQL's own mathematics: the choice among samples, and values without any policy."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.ifql import IFQLConfig
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "value/loss": ({"value"}, ("value",)),
    "critic/loss": ({"critic"}, ("critic",)),
    "flow/loss": ({"bc_flow"}, ("flow",)),
}
SMALL = {"num_candidates": 4}


def ifql(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "ifql", **changes)


def test_values_are_those_of_iql(kind, sharing):
    agent, reference = ifql(kind, sharing), make_agent(kind, sharing, "iql")
    with torch.no_grad():
        for slow in (agent.target_critic, agent.encoder.targets):
            for parameter in slow.parameters():
                parameter.mul_(1.5)
    common = reference.state_dict().keys() & agent.state_dict().keys()
    reference.load_state_dict({n: agent.state_dict()[n] for n in common}, strict=False)
    batch = make_batch(kind)
    ours, _ = agent(batch, make_noises(agent))
    theirs, _ = reference(batch, make_noises(reference))
    for loss in ("value/loss", "critic/loss"):
        torch.testing.assert_close(ours[loss], theirs[loss])


def test_each_row_gets_the_sample_with_the_greatest_least_critic(kind, sharing):
    agent = ifql(kind, sharing, num_candidates=6)
    observations = make_batch(kind).observations
    with torch.no_grad():
        for slow in (agent.target_critic, agent.encoder.targets):
            for parameter in slow.parameters():
                parameter.neg_()  # were the choice by the slow critic, it would be another
    acted = agent.act(observations, generator=torch.Generator().manual_seed(5))
    noises = torch.randn(B, 6 * A, generator=torch.Generator().manual_seed(5)).view(B, 6, A)
    chosen = set()
    with torch.no_grad():
        features = agent.encoder(observations)
        for row in range(B):
            candidates = agent.flow_actions(features["flow"][row].expand(6, -1), noises[row])
            states = features["critic"][row].expand(6, -1)
            best = agent.critic(states, candidates).min(0).values.argmax()
            torch.testing.assert_close(acted[row], candidates[best], rtol=1e-4, atol=1e-5)
            chosen.add(best.item())
    assert len(chosen) > 1


def test_one_candidate_is_a_sample_of_the_flow():
    agent = ifql(num_candidates=1)
    observations = make_batch("state").observations
    acted = agent.act(observations, generator=torch.Generator().manual_seed(5))
    noises = torch.randn(B, A, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(acted, agent.flow_actions(observations, noises))


@pytest.mark.parametrize(
    ("field", "value"), [("num_candidates", 0), ("expectile", 1.0), ("flow_steps", 0)]
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        IFQLConfig(**{field: value})
