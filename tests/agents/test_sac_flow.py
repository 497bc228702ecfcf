"""SAC Flow's own mathematics: entropy in critic and policy, and what becomes of its weight."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deflow_vision.agents.sac_flow import SACFlowConfig
from deflow_vision.networks.sac_flow import DecodedField, GatedField
from deflow_vision.noisy_flow import noisy_flow_sample
from tests.agents.conftest import A, B, D, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "flow/loss": ({"flow"}, ("flow",)),
    "actor/q_loss": ({"flow"}, ("flow",)),
    "actor/penalty": ({"flow"}, ("flow",)),
    "entropy/loss": ({"log_entropy_weight"}, ()),
}
SMALL = {"model_dim": 8, "flow_steps": 3}


def sac_flow(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "sac_flow", **changes)


@pytest.fixture(params=["transformer", "gated"])
def velocity(request):
    return request.param


def sample(agent, features, noises, std):
    return noisy_flow_sample(lambda x, t: agent.flow(features, x, t), noises, std)


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_the_target_takes_the_entropy_with_the_actions_of_little_noise(kind, velocity, q_agg):
    agent = sac_flow(kind, velocity=velocity, q_agg=q_agg, discount=0.5, entropy_weight=0.3)
    batch, noises = make_batch(kind), make_noises(agent)
    with torch.no_grad():
        features = agent.encoder(batch.next_observations)["flow"]
        next_actions, log_probs = sample(agent, features, noises.next_action, 0.02)
        next_q = agent.target_critic(
            agent.encoder.encode_target(batch.next_observations), next_actions
        )
        next_q = next_q.mean(0) if q_agg == "mean" else next_q.amin(0)
        target = batch.rewards + 0.5 * batch.masks * (next_q - 0.3 * log_probs)
        q = agent.critic(agent.encoder(batch.observations)["critic"], batch.actions)
    wanted = (q - target).square().mean()
    torch.testing.assert_close(agent(batch, noises)[0]["critic/loss"].detach(), wanted)


def test_the_policy_climbs_mean_q_and_entropy_and_pays_for_its_distance(velocity):
    agent = sac_flow(velocity=velocity, alpha=7.0, q_agg="min", entropy_weight=0.3)
    batch, noises = make_batch("state"), make_noises(agent)
    losses, metrics = agent(batch, noises)
    with torch.no_grad():
        actions, log_probs = sample(agent, batch.observations, noises.action, 0.05)
        q = agent.critic(batch.observations, actions).mean()
    torch.testing.assert_close(losses["actor/q_loss"].detach(), 0.3 * log_probs.mean() - q)
    distance = (actions - batch.actions).square().mean()
    torch.testing.assert_close(losses["actor/penalty"].detach(), 7 * distance)
    torch.testing.assert_close(metrics["entropy/value"], -log_probs.mean())


def test_the_gradient_of_q_passes_through_all_noisy_steps():
    class LinearField(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.3))

        def forward(self, features, x, times):
            return self.rate * x

    class SumCritic(nn.Module):
        def forward(self, features, actions):
            return torch.stack([actions.sum(-1)] * 2)

    agent = sac_flow(flow_steps=3, entropy_weight=1e-8)
    agent.flow, agent.critic = LinearField(), SumCritic()
    noises = make_noises(agent)
    agent(make_batch("state"), noises)[0]["actor/q_loss"].backward()

    def value(rate):
        x = noises.action[:, 0].double()
        for k in range(3):
            x = x + rate * x / 3 + 0.05 * noises.action[:, k + 1]
        return x.tanh().sum(-1).mean()

    slope = (value(0.3 + 1e-6) - value(0.3 - 1e-6)) / 2e-6
    assert agent.flow.rate.grad.item() == pytest.approx(-slope.item(), rel=1e-4)


def test_the_entropys_weight_falls_while_a_paths_log_probability_is_above_zero():
    agent = sac_flow()
    batch, noises = make_batch("state"), make_noises(agent)
    losses, metrics = agent(batch, noises)
    assert metrics["entropy/value"] < 0
    torch.testing.assert_close(losses["entropy/loss"], -0.2 * metrics["entropy/value"])
    losses["entropy/loss"].backward()
    assert agent.log_entropy_weight.grad > 0


def test_a_fixed_weight_has_no_loss_and_does_not_learn():
    agent = sac_flow(tune_entropy_weight=False, entropy_weight=0.5)
    losses, metrics = agent(make_batch("state"), make_noises(agent))
    assert "entropy/loss" not in losses
    assert metrics["entropy/weight"].item() == pytest.approx(0.5)
    held = {id(p) for group in agent.parameter_groups() for p in group["params"]}
    assert id(agent.log_entropy_weight) not in held


def test_every_parameter_of_both_forms_gets_a_gradient(velocity, kind):
    agent = sac_flow(kind, "separate", velocity=velocity)
    losses, _ = agent(make_batch(kind), make_noises(agent))
    sum(losses.values()).backward()
    for name, parameter in agent.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_acting_is_a_sample_with_little_noise(velocity):
    agent = sac_flow(velocity=velocity)
    observations = make_batch("state").observations
    acted = agent.act(observations, generator=torch.Generator().manual_seed(3))
    noises = torch.randn(B, 4 * A, generator=torch.Generator().manual_seed(3)).view(B, 4, A)
    with torch.no_grad():
        torch.testing.assert_close(acted, sample(agent, observations, noises, 0.02)[0])


def test_the_gated_field_begins_with_an_almost_open_gate():
    torch.manual_seed(0)
    field = GatedField(D, A, (11, 13))
    features, x, times = torch.randn(B, D), torch.randn(B, A), torch.rand(B)
    inner = field.mlp(torch.cat([features, x, times.unsqueeze(1)], 1))
    openness = 1 / (1 + math.exp(-5))
    torch.testing.assert_close(field(features, x, times), openness * (inner - x))


def test_a_decoders_layer_is_torchs_with_attention_to_one_token():
    torch.manual_seed(0)
    field, dim = DecodedField(D, A, 8, 1), 8
    theirs = nn.TransformerDecoderLayer(
        dim,
        2,
        4 * dim,
        dropout=0.0,
        activation=lambda x: nn.functional.gelu(x, approximate="tanh"),
        layer_norm_eps=1e-6,
        batch_first=True,
    )
    (ours,) = field.layers
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for attention, (value, out) in (
            (theirs.self_attn, ours.own),
            (theirs.multihead_attn, ours.cross),
        ):
            attention.in_proj_weight[2 * dim :] = value.weight
            attention.in_proj_bias[2 * dim :] = value.bias
            attention.out_proj.load_state_dict(out.state_dict())
    theirs.linear1.load_state_dict(ours.mlp_in.state_dict())
    theirs.linear2.load_state_dict(ours.mlp_out.state_dict())
    for norm, own in zip((theirs.norm1, theirs.norm2, theirs.norm3), ours.norms, strict=True):
        norm.load_state_dict(own.state_dict())
    token, state = torch.randn(B, dim), torch.randn(B, dim)
    expected = theirs(token.unsqueeze(1), state.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(ours(token, state), expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -1.0),
        ("entropy_weight", 0.0),
        ("flow_steps", 0),
        ("noise_std", 0.0),
        ("actor_noise_std", float("nan")),
        ("model_dim", 2),
        ("model_depth", 0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        SACFlowConfig(**{field: value})
