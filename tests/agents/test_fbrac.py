"""FBRAC's own mathematics: the gradient of Q through every Euler step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deflow_vision.agents.fbrac import FBRACConfig
from deflow_vision.flow import flow_matching_loss
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/q_loss": ({"flow"}, ("flow",)),
    "actor/penalty": ({"flow"}, ("flow",)),
}


def fbrac(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "fbrac", **changes)


class LinearField(nn.Module):
    """v(s, x, t) = c x, whose Euler steps end at z (1 + c / M)^M."""

    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, features, x, times):
        return self.rate * x


class SumCritic(nn.Module):
    """Q_i(s, a) = i sum_d a."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, features, actions):
        return self.scale.unsqueeze(-1) * actions.sum(-1)


@pytest.mark.parametrize("steps", [1, 10])
def test_the_q_loss_of_a_linear_field_has_its_gradient_in_closed_form(steps):
    rate = 0.7
    agent = fbrac(flow_steps=steps)
    agent.flow, agent.critic = LinearField(rate), SumCritic()
    noises = make_noises(agent)
    noises = noises._replace(action=noises.action * 0.1)  # ends inside (-1, 1): no clipping
    losses, _ = agent(make_batch("state"), noises)
    losses["actor/q_loss"].backward()
    mean_sum = noises.action.sum(-1).mean()
    # Q is the mean of its members: 3/2 of the sum. d/dc (1 + c/M)^M = (1 + c/M)^(M - 1).
    wanted = -1.5 * mean_sum * (1 + rate / steps) ** (steps - 1)
    torch.testing.assert_close(agent.flow.rate.grad, wanted)
    torch.testing.assert_close(
        losses["actor/q_loss"].detach(), -1.5 * mean_sum * (1 + rate / steps) ** steps
    )
    assert agent.critic.scale.grad is None


def test_the_q_losss_gradient_equals_finite_differences_through_all_steps(kind):
    agent = fbrac(kind, "separate")
    batch, noises = make_batch(kind), make_noises(agent)
    noises = noises._replace(action=noises.action * 0.1)
    with torch.no_grad():
        agent.flow.mlp.out.weight.mul_(0.3)  # ends inside (-1, 1): no kink of the clipping
    learning = [*agent.flow.parameters(), *agent.encoder.encoders["flow"].parameters()]

    def q_loss():
        return agent(batch, noises)[0]["actor/q_loss"]

    gradients = torch.autograd.grad(q_loss(), learning)
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    eps = 1e-3 if kind == "pixels" else 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, gradient in zip(learning, gradients, strict=True):
                parameter.add_(sign * eps / norm * gradient)
            values.append(q_loss().double())
            for parameter, gradient in zip(learning, gradients, strict=True):
                parameter.sub_(sign * eps / norm * gradient)
    slope = (values[0] - values[1]) / (2 * eps)
    assert slope.item() == pytest.approx(norm.item(), rel=0.01)


def test_an_action_that_is_clipped_at_the_end_gets_no_gradient_of_q():
    agent = fbrac()
    noises = make_noises(agent)
    for start, moves in ((0.1, True), (5.0, False)):
        agent.flow, agent.critic = LinearField(0.0), SumCritic()
        far = noises._replace(action=torch.full((B, A), start))
        agent(make_batch("state"), far)[0]["actor/q_loss"].backward()
        assert (agent.flow.rate.grad.abs() > 0) == moves


def test_the_policy_climbs_the_mean_of_its_critics_unnormalised():
    agent = fbrac(q_agg="min")
    batch, noises = make_batch("state"), make_noises(agent)
    with torch.no_grad():
        actions = agent.policy(batch.observations, noises.action)
        q = agent.critic(batch.observations, actions).mean(0)
    losses, metrics = agent(batch, noises)
    torch.testing.assert_close(losses["actor/q_loss"].detach(), -q.mean())
    torch.testing.assert_close(metrics["actor/q"], q.mean())


def test_the_penalty_is_alpha_times_the_flow_matching_loss():
    agent = fbrac(alpha=7.0)
    batch, noises = make_batch("state"), make_noises(agent)
    plain = flow_matching_loss(
        lambda x, t: agent.flow(batch.observations, x, t), batch.actions, noises.flow, noises.times
    )
    losses, metrics = agent(batch, noises)
    torch.testing.assert_close(losses["actor/penalty"], 7 * plain)
    torch.testing.assert_close(metrics["flow/loss"], plain.detach())


def test_the_target_takes_the_critics_at_a_sample_of_the_policy(kind):
    agent = fbrac(kind, discount=0.5)
    batch, noises = make_batch(kind), make_noises(agent)
    with torch.no_grad():
        next_features = agent.encoder(batch.next_observations)["flow"]
        next_actions = agent.policy(next_features, noises.next_action)
        target_features = agent.encoder.encode_target(batch.next_observations)
        next_q = agent.target_critic(target_features, next_actions).mean(0)
        target = batch.rewards + 0.5 * batch.masks * next_q
        q = agent.critic(agent.encoder(batch.observations)["critic"], batch.actions)
    wanted = (q - target).square().mean()
    torch.testing.assert_close(agent(batch, noises)[0]["critic/loss"].detach(), wanted)


def test_an_image_is_encoded_once_for_all_euler_steps(sharing):
    agent = fbrac("pixels", sharing)
    calls = []
    for encoder in agent.encoder.encoders.values():
        encoder.register_forward_hook(lambda *_: calls.append(1))
    agent(make_batch("pixels"), make_noises(agent))
    now_and_next = {"shared": 1 + 1, "separate": 2 + 1}
    assert len(calls) == now_and_next[sharing]


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -1.0), ("alpha", float("nan")), ("flow_steps", 0)]
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        FBRACConfig(**{field: value})
