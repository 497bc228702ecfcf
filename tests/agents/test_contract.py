"""What every agent must do, over agents x {state, pixels} x {shared, separate}."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents import AGENTS
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises


@pytest.fixture(params=AGENTS)
def agent(request, kind, sharing):
    return make_agent(kind, sharing, request.param)


def clone(batch):
    return type(batch)(*(None if x is None else x.clone() for x in batch))


def test_losses_are_finite_scalars_and_metrics_are_detached(agent, kind):
    losses, metrics = agent(make_batch(kind), make_noises(agent), 0)
    assert losses
    for value in losses.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
    assert not any(value.requires_grad for value in metrics.values())
    assert not losses.keys() & metrics.keys()


def test_forward_leaves_the_batch_unchanged(agent, kind):
    batch = make_batch(kind)
    before = clone(batch)
    agent(batch, make_noises(agent), 0)
    for after, was in zip(batch, before, strict=True):
        assert torch.equal(after, was)


def test_forward_is_deterministic(agent, kind):
    batch, noises = make_batch(kind), make_noises(agent)
    first, second = (agent(batch, noises, 0)[0] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("bf16", [False, True])
def test_every_learning_parameter_gets_a_gradient(agent, kind, bf16):
    # Under autocast too: a cast that was cached without gradient must not be used with one.
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses, _ = agent(make_batch(kind), make_noises(agent), 0)
    sum(losses.values()).backward()
    for name, parameter in agent.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_actions_lie_in_range_and_depend_on_the_generator_alone(agent, kind):
    observations = make_batch(kind).observations
    actions = [agent.act(observations, generator=torch.Generator().manual_seed(3)) for _ in "ab"]
    assert actions[0].shape == (B, A)
    assert actions[0].abs().max() <= 1
    assert torch.equal(*actions)
    assert not actions[0].requires_grad


def test_an_episodes_action_does_not_depend_on_the_others_in_the_batch(agent, kind):
    observations = make_batch(kind).observations
    generators = [torch.Generator().manual_seed(i) for i in range(B)]
    together = agent.act(observations, generator=generators)
    alone = agent.act(observations[4:5], generator=[torch.Generator().manual_seed(4)])
    torch.testing.assert_close(together[4:5], alone, rtol=1e-5, atol=1e-5)


def test_targets_move_by_exactly_tau(agent, kind):
    state = {name: value.clone() for name, value in agent.state_dict().items()}
    with torch.no_grad():
        for name, parameter in agent.named_parameters():
            if "target" not in name:
                parameter.add_(1.0)
    agent.update_targets(0)
    moved = agent.state_dict()
    for name in state:
        if "target" in name:
            expected = state[name] + agent.config.tau
            torch.testing.assert_close(moved[name], expected, rtol=0, atol=1e-6)


def test_the_state_round_trips(agent, kind):
    other = make_agent(kind, "shared" if agent.encoder.shared else "separate")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(agent.state_dict())
    batch, noises = make_batch(kind), make_noises(agent)
    ours, theirs = (a(batch, noises, 0)[0] for a in (agent, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_optimizer_holds_each_learning_parameter_once(agent):
    held = [p for group in agent.parameter_groups() for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in agent.parameters() if p.requires_grad}
