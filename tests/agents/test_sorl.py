"""SORL's own mathematics: numbers of steps, what they do to critic and policy, acting by Q."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deflow_vision.agents.sorl import SORLConfig, with_steps
from deflow_vision.config import compose
from tests.agents.conftest import A, B, E, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/flow_loss": ({"flow"}, ("flow",)),
    "actor/consistency_loss": ({"flow"}, ("flow",)),
    "actor/q_loss": ({"flow"}, ("flow",)),
}
SMALL = {"max_steps": 4, "num_candidates": 3}


def sorl(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "sorl", **changes)


class StepCritic(nn.Module):
    """Q_i(s, a, k) = i (sum_d a + 10 k)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, features, actions):
        return self.scale.unsqueeze(-1) * (actions[:, :A].sum(-1) + 10 * actions[:, A])


def test_numbers_of_steps_are_drawn_from_all_powers_of_two_one_for_a_batch_each():
    agent = sorl(max_steps=8)
    drawn = [make_noises(agent, seed) for seed in range(60)]
    for name in ("level", "next_level"):
        levels = torch.stack([getattr(noises, name) for noises in drawn])
        assert levels.shape == (60, 1)
        assert set(levels.flatten().tolist()) == {0, 1, 2, 3}
    assert any(noises.level != noises.next_level for noises in drawn)


@pytest.mark.parametrize("q_agg", ["mean", "min"])
@pytest.mark.parametrize("level", [0, 2])
def test_the_target_takes_the_slow_critics_at_k_steps_and_told_k(kind, q_agg, level):
    agent = sorl(kind, discount=0.5, q_agg=q_agg)
    batch, noises = make_batch(kind), make_noises(agent)
    noises = noises._replace(next_level=torch.tensor([float(level)]))
    with torch.no_grad():
        next_features = agent.encoder(batch.next_observations)["flow"]
        x, k = noises.next_action, 2**level
        for i in range(k):
            times, levels = torch.full((B,), i / k), torch.full((B,), float(level))
            x = x + agent.flow(next_features, x, times, levels) / k
        told = torch.full((B, 1), float(k))
        target_features = agent.encoder.encode_target(batch.next_observations)
        next_q = agent.target_critic(target_features, torch.cat([x.clamp(-1, 1), told], 1))
        next_q = next_q.mean(0) if q_agg == "mean" else next_q.amin(0)
        target = batch.rewards + 0.5 * batch.masks * next_q
        features = agent.encoder(batch.observations)["critic"]
        q = agent.critic(features, torch.cat([batch.actions, told], 1))
    wanted = (q - target).square().mean()
    torch.testing.assert_close(agent(batch, noises)[0]["critic/loss"].detach(), wanted)


def test_flow_matching_is_at_the_finest_step_and_on_its_grid(monkeypatch):
    agent = sorl(max_steps=8, flow_weight=7.0)
    batch, noises, seen = make_batch("state"), make_noises(agent), []

    def forward(features, x, times, levels):
        seen.append((x, times, levels))
        return torch.zeros_like(x)

    monkeypatch.setattr(agent.flow, "forward", forward)
    losses, metrics = agent(batch, noises)
    times = (8 * noises.flow_times).floor() / 8
    points = (1 - times).unsqueeze(1) * noises.flow + times.unsqueeze(1) * batch.actions
    found = [(x, t) for x, t, h in seen if torch.equal(x, points) and bool((h == 3).all())]
    assert any(torch.equal(t, times) for _, t in found)
    plain = (batch.actions - noises.flow).square().mean()
    torch.testing.assert_close(metrics["flow/loss"], plain)
    torch.testing.assert_close(losses["actor/flow_loss"], 7 * plain)


def test_the_consistency_reads_the_slow_field_and_its_encoder(kind, sharing):
    agent = sorl(kind, sharing)
    batch, noises = make_batch(kind), make_noises(agent)
    before = agent(batch, noises)[0]
    with torch.no_grad():
        slow = agent.target_flow
        if kind == "pixels":
            slow = agent.encoder.targets["flow" if sharing == "separate" else "shared"]
        for parameter in slow.parameters():
            parameter.add_(0.5)
    after = agent(batch, noises)[0]
    changed = {name for name in before if before[name] != after[name]}
    shared = {"critic/loss"} if (kind, sharing) == ("pixels", "shared") else set()
    assert changed == {"actor/consistency_loss"} | shared


def test_the_policy_climbs_the_mean_of_its_critics_normalised():
    agent = sorl(q_weight=3.0, q_agg="min")
    agent.critic = StepCritic()
    batch, noises = make_batch("state"), make_noises(agent)
    noises = noises._replace(action=-noises.action.abs(), level=torch.tensor([0.0]))
    losses, metrics = agent(batch, noises)
    actions = agent.policy(batch.observations, noises.action, noises.level).detach()
    q = 1.5 * (actions.sum(-1) + 10)
    torch.testing.assert_close(metrics["actor/q"], q.mean())
    torch.testing.assert_close(losses["actor/q_loss"].detach(), -3 * q.mean() / q.abs().mean())


def test_the_scale_of_q_does_not_matter_to_the_policy():
    agent = sorl()
    batch, noises = make_batch("state"), make_noises(agent)
    before = agent(batch, noises)[0]["actor/q_loss"]
    with torch.no_grad():
        agent.critic.mlp.weights[-1].mul_(5)
        agent.critic.mlp.biases[-1].mul_(5)
    torch.testing.assert_close(agent(batch, noises)[0]["actor/q_loss"], before)


def test_the_gradient_of_q_passes_through_all_k_steps():
    rate = 0.3

    class LinearField(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(rate))

        def forward(self, features, x, times, levels):
            return self.rate * x

    for level in (0, 1, 2):
        agent, steps = sorl(q_weight=1.0), 2**level
        agent.flow, agent.critic = LinearField(), StepCritic()
        noises = make_noises(agent)
        noises = noises._replace(action=noises.action * 0.1, level=torch.tensor([float(level)]))
        loss = agent(make_batch("state"), noises)[0]["actor/q_loss"]
        loss.backward()
        slope = 1.5 * noises.action.sum(-1).mean() * (1 + rate / steps) ** (steps - 1)
        scale = 1.5 * (noises.action.sum(-1) * (1 + rate / steps) ** steps + 10 * steps)
        torch.testing.assert_close(agent.flow.rate.grad, -slope / scale.abs().mean())


@pytest.mark.parametrize("steps", [1, 4])
def test_acting_takes_k_steps_and_the_best_candidate_by_q_at_k(steps):
    agent = sorl(inference_steps=steps, num_candidates=5)
    observations = make_batch("state").observations
    acted = agent.act(observations, generator=torch.Generator().manual_seed(3))
    noises = torch.randn(B, 5 * A, generator=torch.Generator().manual_seed(3)).view(B, 5, A)
    level = torch.tensor([float(steps)]).log2()
    with torch.no_grad():
        for row in range(B):
            features = observations[row].expand(5, -1)
            actions = agent.policy(features, noises[row], level)
            q = agent.critic(features, with_steps(actions, level))
            assert q.shape == (E, 5)
            torch.testing.assert_close(acted[row], actions[q.mean(0).argmax()])


def test_acting_costs_only_the_steps_it_takes():
    agent, calls = sorl(inference_steps=2), []
    agent.flow.register_forward_hook(lambda *_: calls.append(1))
    agent.act(make_batch("state").observations)
    assert len(calls) == 2


def test_critic_and_policy_have_bounds_of_their_own():
    agent = sorl("pixels", "separate", max_grad_norm=2.0)
    critic, flow = agent.parameter_groups()
    assert critic["clip"] == flow["clip"] == 2
    networks = {id(p) for p in agent.flow.parameters()}
    networks |= {id(p) for p in agent.encoder.encoders["flow"].parameters()}
    assert {id(p) for p in flow["params"]} == networks


@pytest.mark.parametrize(
    ("task", "weight"),
    [("antmaze-giant-navigate", 500), ("cube-single-play", 10), ("visual-scene-play", 100)],
)
def test_the_weight_of_q_is_that_of_the_task(task, weight):
    config = compose(task, "sorl")
    assert config.agent.q_weight == weight


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("q_weight", -1.0),
        ("flow_weight", float("nan")),
        ("consistency_weight", -1.0),
        ("max_steps", 6),
        ("max_steps", 1),
        ("inference_steps", 3),
        ("inference_steps", 16),
        ("num_candidates", 0),
        ("max_grad_norm", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        SORLConfig(**{field: value})
