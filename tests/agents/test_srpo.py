"""SRPO's own mathematics: the gradient of its policy, its two stages, what the second leaves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deflow_vision.agents.srpo import SRPOConfig
from deflow_vision.config import compose
from deflow_vision.diffusion import vp_scales
from deflow_vision.training.loop import make_optimizer
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "value/loss": ({"value"}, ("value",)),
    "critic/loss": ({"critic"}, ("critic",)),
    "diffusion/loss": ({"diffusion"}, ("diffusion",)),
    "actor/score_loss": ({"actor"}, ("actor",)),
    "actor/q_loss": ({"actor"}, ("actor",)),
}
SMALL = {
    "actor_hidden_dims": (12,),
    "diffusion_width": 8,
    "diffusion_blocks": 2,
    "pretrain_steps": 3,
}
STEPS = (0, 3)
RATES = {"target_diffusion": 0.01}
SMALL["diffusion_tau"] = RATES["target_diffusion"]
MEAN, VARIANCE = 0.2, 0.09


def srpo(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "srpo", **changes)


class GaussianNoiseModel(nn.Module):
    """eps* of actions N(MEAN, VARIANCE), whatever the state: it may see no dropout."""

    def forward(self, features, x, index):
        data_scales, noise_scales = vp_scales(index, 5)
        spread = data_scales.square() * VARIANCE + noise_scales.square()
        return noise_scales * (x - data_scales * MEAN) / spread


class QuadraticCritic(nn.Module):
    """Q_i(s, a) = -w_i |a - c|^2 / 2."""

    def __init__(self, weights, centre):
        super().__init__()
        self.weights, self.centre = torch.tensor(weights), centre

    def forward(self, features, actions):
        return -self.weights[:, None] * (actions - self.centre).square().sum(-1) / 2


def solvable(**changes):
    """An agent whose behaviour is a Gaussian and whose mean Q is -2 |a + 0.4|^2 / 2."""
    agent = srpo(**changes)
    agent.target_diffusion = GaussianNoiseModel()
    agent.target_critic = QuadraticCritic([1.0, 3.0], -0.4)
    return agent


def policy_losses(agent, batch, noises):
    return agent(batch, noises, agent.stage(3))[0]


def test_the_surrogate_has_the_gradient_of_the_noised_log_density_and_of_q():
    agent = solvable(beta=0.7)
    batch, noises = make_batch("state"), make_noises(agent)
    parameters = list(agent.actor.parameters())
    surrogate = sum(policy_losses(agent, batch, noises).values())
    found = torch.autograd.grad(surrogate, parameters)

    actions = agent.policy(batch.observations)
    data_scales, noise_scales = vp_scales(noises.steps.float(), 5)
    points = data_scales * actions + noise_scales * noises.diffusion
    deviations = (data_scales.square() * VARIANCE + noise_scales.square()).sqrt()
    density = torch.distributions.Normal(data_scales * MEAN, deviations)
    weights = noise_scales**3 / data_scales
    penalty = -(weights * density.log_prob(points)).sum(-1).mean()
    q = agent.target_critic(batch.observations, actions).mean(0).mean()
    wanted = torch.autograd.grad(penalty - 0.7 * q, parameters)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_gradient_vanishes_where_score_and_q_balance():
    agent = solvable(beta=0.3)
    index = torch.arange(5.0)
    data_scales, noise_scales = vp_scales(index, 5)
    spread = data_scales.square() * VARIANCE + noise_scales.square()
    pull = (noise_scales**3 * data_scales / spread).mean().item()
    # pull (a - mean) = beta w (c - a), with w = 2 the mean critic's.
    balance = (pull * MEAN + 0.3 * 2 * -0.4) / (pull + 0.3 * 2)
    with torch.no_grad():
        agent.actor.out.weight.zero_()
        agent.actor.out.bias.fill_(math.atanh(balance))
    batch = make_batch("state", size=5)
    noises = make_noises(agent, size=5)
    noises = noises._replace(diffusion=torch.zeros(5, A), steps=index.long())
    score, q = (
        torch.autograd.grad(loss, agent.actor.out.bias, retain_graph=True)[0]
        for loss in policy_losses(agent, batch, noises).values()
    )
    assert score.abs().min() > 1e-2
    torch.testing.assert_close(score + q, torch.zeros(A), rtol=0, atol=1e-5)


def test_guidance_is_the_gradient_of_the_mean_slow_critic():
    agent = solvable()
    actions = make_batch("state").actions
    q, guidance = agent.guidance(torch.zeros(B, 5), actions)
    torch.testing.assert_close(q, -(actions + 0.4).square().sum(-1))
    torch.testing.assert_close(guidance, -2 * (actions + 0.4))


def test_normalised_guidance_has_size_one_for_each_action_and_the_same_direction():
    agent = solvable(normalize_guidance=True)
    actions = make_batch("state").actions
    _, guidance = agent.guidance(torch.zeros(B, 5), actions)
    torch.testing.assert_close(guidance.square().mean(-1), torch.ones(B))
    directions = nn.functional.cosine_similarity(guidance, -(actions + 0.4))
    torch.testing.assert_close(directions, torch.ones(B))


def test_a_flat_critic_gives_no_guidance_and_no_nan():
    agent = solvable(normalize_guidance=True)
    agent.target_critic = QuadraticCritic([0.0, 0.0], 0.0)
    _, guidance = agent.guidance(torch.zeros(B, 5), make_batch("state").actions)
    assert torch.equal(guidance, torch.zeros(B, A))


def test_validation_without_gradients_gives_the_same_losses():
    agent = srpo()
    batch, noises = make_batch("state"), make_noises(agent)
    losses = policy_losses(agent, batch, noises)
    with torch.no_grad():
        assert policy_losses(agent, batch, noises) == losses


def test_the_second_stage_has_no_dropout():
    agent = srpo()
    batch, noises = make_batch("state"), make_noises(agent)
    dropped = noises._replace(keep=torch.zeros_like(noises.keep))
    assert policy_losses(agent, batch, noises) == policy_losses(agent, batch, dropped)


def test_the_first_stage_is_that_of_idql():
    agent = srpo()
    reference = make_agent("state", algo="idql", diffusion_width=8, diffusion_blocks=2)
    state = agent.state_dict()
    reference.load_state_dict({name: state[name] for name in reference.state_dict()})
    batch, noises = make_batch("state"), make_noises(agent)
    ours, _ = agent(batch, noises, agent.stage(2))
    theirs, _ = reference(batch, noises)
    assert ours == theirs


def test_the_second_stage_moves_the_policy_and_nothing_else(kind, sharing):
    agent = srpo(kind, sharing)
    optimizer = make_optimizer(agent)
    batch = make_batch(kind)
    before = {}
    for step in (0, 1, 2, 3, 4):
        if step == 3:
            before = {name: value.clone() for name, value in agent.state_dict().items()}
        losses, _ = agent(batch, make_noises(agent, step), agent.stage(step))
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        agent.update_targets(step)
        optimizer.step()
    after = agent.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    allowed = ("actor.", "encoder.encoders.actor.")
    assert moved == {name for name in before if name.startswith(allowed)}


def test_the_policys_rate_falls_from_the_second_stage_on():
    agent = srpo(pretrain_steps=100, actor_decay_steps=50, decay_steps=100, weight_decay=1e-2)
    values, diffusion, actor = make_optimizer(agent).param_groups
    assert "schedule" not in values
    assert diffusion["schedule"](50) == pytest.approx(0.5)
    factors = [actor["schedule"](step) for step in (100, 125, 150)]
    assert factors == pytest.approx([1, 0.5, 0])
    assert [group["weight_decay"] for group in (values, diffusion, actor)] == [0.0, 1e-2, 0.0]
    assert {id(p) for p in actor["params"]} == {id(p) for p in agent.actor.parameters()}


def test_acting_is_the_squashed_policy_without_noise():
    agent = srpo()
    observations = make_batch("state").observations
    wanted = agent.actor(observations).tanh().detach()
    for explore in (False, True):
        assert torch.equal(agent.act(observations, explore=explore), wanted)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("cube-single-play", {"beta": 0.03, "normalize_guidance": False}),
        ("antmaze-giant-navigate", {"beta": 0.3, "actor_hidden_dims": (256,) * 4}),
        ("antmaze-umaze-v2", {"beta": 0.02, "normalize_guidance": True}),
        ("antmaze-large-diverse-v2", {"beta": 0.05, "expectile": 0.9}),
        ("pen-human-v1", {"beta": 0.03, "expectile": 0.7}),
        ("door-expert-v1", {"beta": 0.01}),
        ("relocate-cloned-v1", {"beta": 0.03}),
    ],
)
def test_a_task_has_its_published_settings(task, settings):
    config = compose(task, "srpo")
    assert {name: getattr(config.agent, name) for name in settings} == settings
    agent = config.agent
    assert config.offline_steps == agent.pretrain_steps + agent.actor_decay_steps == 4_000_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expectile", 1.0),
        ("beta", -1.0),
        ("actor_hidden_dims", (0,)),
        ("pretrain_steps", 0),
        ("actor_decay_steps", 0),
        ("diffusion_steps", 0),
        ("diffusion_width", 0),
        ("diffusion_blocks", 0),
        ("dropout", 1.0),
        ("diffusion_tau", 0.0),
        ("weight_decay", -1.0),
        ("decay_steps", 0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        SRPOConfig(**{field: value})
