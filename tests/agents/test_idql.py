"""IDQL's own mathematics: its choice among denoised samples, its dropout, its optimizer groups."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.base import half_cosine
from deflow_vision.agents.idql import IDQLConfig
from deflow_vision.config import compose
from deflow_vision.diffusion import ddpm_sample
from deflow_vision.training.loop import make_optimizer
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "value/loss": ({"value"}, ("value",)),
    "critic/loss": ({"critic"}, ("critic",)),
    "diffusion/loss": ({"diffusion"}, ("diffusion",)),
}
SMALL = {"num_candidates": 4, "diffusion_width": 8, "diffusion_blocks": 2}
RATES = {"target_diffusion": 0.01}
SMALL["diffusion_tau"] = RATES["target_diffusion"]


def idql(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "idql", **changes)


def constant(network, value):
    """A network that gives `value` whatever it sees."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        list(network.parameters())[-1].fill_(value)


def test_the_value_leans_to_the_least_slow_critic_by_the_expectile():
    agent = idql(expectile=0.7)
    with torch.no_grad():
        agent.target_critic.mlp.biases[-1][0] += 1.0
    batch = make_batch("state")
    loss = agent(batch, make_noises(agent))[0]["value/loss"]
    q = agent.target_critic(batch.observations, batch.actions).min(0).values
    differences = q - agent.value(batch.observations)
    weights = torch.where(differences >= 0, 0.7, 0.3)
    torch.testing.assert_close(loss, (weights * differences.square()).mean())


def test_the_critic_bootstraps_from_the_value_and_averages_its_members():
    agent = idql(discount=0.9)
    constant(agent.value, -2.0)
    batch = make_batch("state")
    loss = agent(batch, make_noises(agent))[0]["critic/loss"]
    target = batch.rewards + 0.9 * batch.masks * -2.0
    errors = agent.critic(batch.observations, batch.actions) - target
    torch.testing.assert_close(loss, errors.square().mean())


def test_the_diffusion_loss_is_a_sum_over_dimensions():
    agent = idql()
    constant(agent.diffusion, 0.0)
    noises = make_noises(agent)
    loss = agent(make_batch("state"), noises)[0]["diffusion/loss"]
    torch.testing.assert_close(loss, noises.diffusion.square().sum(-1).mean())


def test_dropout_is_in_the_loss_with_its_share_and_not_in_acting():
    agent = idql(dropout=0.25)
    noises = make_noises(agent, size=2000)
    assert noises.keep.float().mean().item() == pytest.approx(0.75, abs=0.01)
    batch, noises = make_batch("state"), make_noises(agent)
    whole = noises._replace(keep=torch.ones_like(noises.keep))
    dropped, kept = (agent(batch, draws)[0]["diffusion/loss"] for draws in (noises, whole))
    assert dropped != kept
    seen = []
    for module in (agent.diffusion, agent.target_diffusion):
        module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs)))
    agent.act(batch.observations, generator=torch.Generator().manual_seed(0))
    assert seen == [3] * 5  # features, point and index in each of five steps


def test_every_step_of_the_diffusion_is_drawn_and_no_other():
    steps = make_noises(idql(), size=500).steps
    assert sorted(set(steps.tolist())) == [0, 1, 2, 3, 4]


def test_each_row_gets_the_slow_sample_with_the_greatest_least_slow_critic():
    agent = idql(num_candidates=6)
    constant(agent.critic, 0.0)  # acting reads neither of the networks that learn
    constant(agent.diffusion, 0.0)
    observations = make_batch("state").observations
    acted = agent.act(observations, generator=torch.Generator().manual_seed(5))
    noises = torch.randn(B, 6 * 5 * A, generator=torch.Generator().manual_seed(5))
    noises = noises.view(B, 6, 5, A)
    chosen = set()
    with torch.no_grad():
        for row in range(B):
            states = observations[row].expand(6, -1)
            candidates = ddpm_sample(
                lambda x, t, states=states: agent.target_diffusion(states, x, t), noises[row]
            )
            best = agent.target_critic(states, candidates).min(0).values.argmax()
            torch.testing.assert_close(acted[row], candidates[best], rtol=1e-4, atol=1e-5)
            chosen.add(best.item())
    assert len(chosen) > 1


def test_the_noise_model_has_decay_and_a_rate_that_falls_to_zero(sharing):
    agent = idql("pixels", sharing, lr=1e-3, weight_decay=1e-2, decay_steps=100)
    values, diffusion = make_optimizer(agent).param_groups
    assert (values["lr"], values["weight_decay"]) == (1e-3, 0.0)
    assert "schedule" not in values
    assert (diffusion["lr"], diffusion["weight_decay"]) == (1e-3, 1e-2)
    factors = [diffusion["schedule"](step) for step in (0, 50, 100, 200)]
    assert factors == pytest.approx([1, 0.5, 0, 0])
    held = {id(p) for p in diffusion["params"]}
    assert {id(p) for p in agent.diffusion.parameters()} <= held
    encoders, own = agent.encoder.encoders, sharing == "separate"
    name = "diffusion" if own else "shared"
    assert all((id(p) in held) == own for p in encoders[name].parameters())


def test_a_half_cosine_is_one_before_it_begins_and_falls_slowest_at_both_ends():
    assert half_cosine(-5, 4) == 1
    factors = [half_cosine(step, 4) for step in range(6)]
    assert factors == pytest.approx([1, 0.5 + 2**-1.5, 0.5, 0.5 - 2**-1.5, 0, 0])


def test_critics_have_no_norms_and_the_value_one_on_its_input():
    agent = idql()
    assert not agent.critic.mlp.norm_scales
    norms = [m for m in agent.value.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert [norm.normalized_shape for norm in norms] == [(5,)]


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("antmaze-large-navigate", {"hidden_dims": (512, 512), "expectile": 0.7}),
        ("cube-double-play", {"hidden_dims": (256, 256), "expectile": 0.9, "num_candidates": 32}),
        ("antmaze-umaze-v2", {"expectile": 0.9}),
        ("pen-cloned-v1", {"expectile": 0.7, "num_candidates": 32}),
        ("hammer-human-v1", {"expectile": 0.7, "num_candidates": 128}),
        ("relocate-cloned-v1", {"num_candidates": 64}),
    ],
)
def test_a_task_has_its_published_settings(task, settings):
    config = compose(task, "idql")
    assert {name: getattr(config.agent, name) for name in settings} == settings
    assert (config.batch_size, config.offline_steps) == (512, 3_000_000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expectile", 1.0),
        ("num_candidates", 0),
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
        IDQLConfig(**{field: value})
