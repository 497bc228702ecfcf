"""Cal-QL's own mathematics: importance weights, the floor, the multiplier, the best next action."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deflow_vision.agents.calql import CalQLConfig, judged
from deflow_vision.config import compose
from deflow_vision.training.loop import make_optimizer
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "critic/cql_loss": ({"critic"}, ("critic",)),
    "multiplier/loss": ({"log_multiplier"}, ()),
    "actor/loss": ({"actor"}, ("actor",)),
    "entropy/loss": ({"log_entropy_weight"}, ()),
}
SMALL = {"num_actions": 4, "cql_gap": 0.5}
K = SMALL["num_actions"]
HALF_LOG_TWO_PI = math.log(2 * math.pi) / 2


def calql(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "calql", **changes)


class LinearCritic(nn.Module):
    """Q_i(s, a) = w_i a_0 + b_i."""

    def __init__(self, slopes, offsets):
        super().__init__()
        self.slopes, self.offsets = (nn.Parameter(torch.tensor(x)) for x in (slopes, offsets))

    def forward(self, features, actions):
        return self.slopes.unsqueeze(-1) * actions[:, 0] + self.offsets.unsqueeze(-1)


def fixed_policy(agent, means, log_std):
    """Make the policy the same in every state."""
    with torch.no_grad():
        agent.actor.mlp.out.weight.zero_()
        agent.actor.mlp.out.bias.copy_(
            torch.tensor([*means, *[log_std + 1] * A])
        )  # its shift is -1


def losses_of(agent, batch=None, noises=None):
    return agent(batch or make_batch("state"), noises or make_noises(agent), None)


def log_prob(means, log_std, noise):
    """log pi of one action, number by number."""
    total = 0.0
    for mean, eps in zip(means, noise, strict=True):
        action = math.tanh(mean + math.exp(log_std) * eps)
        total += -(eps**2) / 2 - log_std - HALF_LOG_TWO_PI - math.log(1 - action**2)
    return total


def test_the_conservative_term_is_a_log_sum_of_weighted_values_less_that_of_the_data():
    agent = calql(cql_gap=None, cql_weight=0.25, num_actions=2)
    means, log_std, slope, offset = (0.3, -0.2, 0.1), -0.5, 2.0, -1.0
    fixed_policy(agent, means, log_std)
    agent.critic = LinearCritic([slope], [offset])
    batch, noises = make_batch("state"), make_noises(agent)
    wanted = 0.0
    for row in range(B):
        exponents = [
            slope * action[0] + offset - math.log(0.5**A) for action in noises.uniform[row].tolist()
        ]
        for noise in [*noises.next[row].tolist(), *noises.current[row].tolist()]:
            q = slope * math.tanh(means[0] + math.exp(log_std) * noise[0]) + offset
            q = max(q, batch.mc_returns[row].item())
            exponents.append(q - log_prob(means, log_std, noise))
        data = slope * batch.actions[row, 0].item() + offset
        wanted += (math.log(sum(map(math.exp, exponents))) - data) / B
    losses, metrics = losses_of(agent, batch, noises)
    assert metrics["cql/term"].item() == pytest.approx(wanted, rel=1e-5)
    assert losses["critic/cql_loss"].item() == pytest.approx(0.25 * wanted, rel=1e-5)


@pytest.mark.parametrize("value", [-3.0, 2.0])
def test_a_constant_q_and_a_wide_policy_give_a_term_that_can_be_written_down(value):
    agent = calql(cql_gap=None, cql_weight=1.0)
    fixed_policy(agent, (0.0, 0.0, 0.0), 0.0)
    agent.critic = LinearCritic([0.0, 0.0], [value, value])
    zeros = torch.zeros(B, K, A)
    noises = make_noises(agent)._replace(next=zeros, current=zeros)
    batch = make_batch("state")._replace(mc_returns=torch.full((B,), -1.0))
    # At u = 0 tanh has slope 1: pi's density is the normal's; K uniform actions, 2 K of the policy.
    floored = max(value, -1.0)
    uniform, policy = value + A * math.log(2), floored + A * HALF_LOG_TWO_PI
    wanted = math.log(K * math.exp(uniform) + 2 * K * math.exp(policy)) - value
    losses, metrics = losses_of(agent, batch, noises)
    assert metrics["cql/term"].item() == pytest.approx(wanted, rel=1e-5)
    assert losses["critic/cql_loss"].item() == pytest.approx(2 * wanted, rel=1e-5)  # two members
    assert metrics["cql/bound_rate"] == (1 if value < -1 else 0)


@pytest.mark.parametrize(("returns", "pushed"), [(-1.0, [True] * 3), (1.0, [True, False, False])])
def test_a_floor_above_q_stops_the_push_on_the_policys_actions_alone(returns, pushed):
    agent = calql(cql_gap=None, cql_weight=1.0)
    agent.critic = LinearCritic([0.0], [0.0])
    seen = []
    agent.critic.register_forward_hook(lambda module, inputs, output: seen.append(output))
    batch = make_batch("state")._replace(mc_returns=torch.full((B,), returns))
    losses, _ = losses_of(agent, batch)
    (others,) = [q for q in seen if q.shape == (1, B * 3 * K)]
    (gradient,) = torch.autograd.grad(losses["critic/cql_loss"], others)
    of_kinds = gradient.view(B, 3, K).abs().sum((0, 2))  # uniform, of pi(s'), of pi(s)
    assert (of_kinds > 0).tolist() == pushed


def test_each_state_is_judged_with_its_own_actions():
    agent = calql()
    features, actions = make_batch("state").observations, torch.rand(B, K, A)
    together = judged(agent.critic, features, actions)
    for k in range(K):
        torch.testing.assert_close(together[..., k], agent.critic(features, actions[:, k]))


@pytest.mark.parametrize("field", ["next_observations", "observations"])
def test_a_third_of_the_actions_comes_from_either_states_policy_and_all_are_judged_at_s(field):
    agent = calql()
    seen = []
    agent.critic.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    batch, noises = make_batch("state"), make_noises(agent)
    losses_of(agent, batch, noises)
    ((features, actions),) = [inputs for inputs in seen if len(inputs[1]) == B * 3 * K]
    assert torch.equal(features, batch.observations.repeat_interleave(3 * K, 0))
    of_kinds = actions.view(B, 3, K, A)
    assert torch.equal(of_kinds[:, 0], noises.uniform)
    place, drawn = (1, noises.next) if field == "next_observations" else (2, noises.current)
    torch.testing.assert_close(
        of_kinds[:, place], agent.policy(getattr(batch, field), drawn)[0].detach()
    )


def test_uniform_actions_have_no_floor():
    agent = calql(cql_gap=None, cql_weight=1.0)
    fixed_policy(agent, (0.0, 0.0, 0.0), 0.0)
    agent.critic = LinearCritic([0.0], [0.0])
    zeros = torch.zeros(B, K, A)
    noises = make_noises(agent)._replace(next=zeros, current=zeros)
    low = make_batch("state")._replace(mc_returns=torch.full((B,), -1.0))
    high = low._replace(mc_returns=torch.full((B,), 0.5))
    terms = [losses_of(agent, batch, noises)[1]["cql/term"].item() for batch in (low, high)]
    uniform, policy = K * 2**A, 2 * K * math.exp(A * HALF_LOG_TWO_PI)
    assert terms[0] == pytest.approx(math.log(uniform + policy), rel=1e-5)
    assert terms[1] == pytest.approx(math.log(uniform + math.exp(0.5) * policy), rel=1e-5)


def test_returns_enter_the_floor_and_nothing_else():
    agent = calql()
    batch, noises = make_batch("state"), make_noises(agent)
    before, after = (
        losses_of(agent, batch._replace(mc_returns=returns), noises)[0]
        for returns in (batch.mc_returns, batch.mc_returns + 5)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"critic/cql_loss", "multiplier/loss"}


def test_the_target_takes_the_best_action_by_the_least_critic_of_each():
    agent = calql(discount=0.9, reward_scale=10.0, reward_shift=5.0)
    agent.critic = LinearCritic([0.0, 0.0], [0.0, 0.0])
    agent.target_critic = LinearCritic([1.0, -2.0], [0.0, 1.0])
    batch, noises = make_batch("state"), make_noises(agent)
    with torch.no_grad():
        noises = noises._replace(target=3 * noises.target)
        first = agent.policy(batch.next_observations, noises.target)[0][..., 0]  # (B, K)
    best = torch.minimum(first, 1 - 2 * first).amax(1)
    assert not torch.allclose(best, torch.minimum(first.amax(1), (1 - 2 * first).amax(1)))
    target = 10 * batch.rewards + 5 + 0.9 * batch.masks * best
    loss = losses_of(agent, batch, noises)[0]["critic/loss"]
    torch.testing.assert_close(loss.detach(), 2 * target.square().mean())


@pytest.mark.parametrize(("gap", "rises"), [(-50.0, True), (50.0, False)])
def test_the_multiplier_rises_where_the_term_is_above_its_gap(gap, rises):
    agent = calql(cql_gap=gap)
    losses, _ = losses_of(agent)
    (gradient,) = torch.autograd.grad(losses["multiplier/loss"], agent.log_multiplier)
    assert (gradient < 0) == rises  # descent adds -gradient


def test_the_multiplier_starts_at_e_and_multiplies_the_weight():
    agent = calql(cql_gap=0.5, cql_weight=5.0)
    losses, metrics = losses_of(agent)
    excess = 5 * (metrics["cql/term"] - 0.5)
    assert metrics["multiplier/value"].item() == pytest.approx(math.e)
    torch.testing.assert_close(losses["critic/cql_loss"].detach(), 2 * math.e * excess)
    torch.testing.assert_close(losses["multiplier/loss"].detach(), -math.e * excess)


def test_the_multiplier_is_at_most_a_million():
    agent = calql()
    with torch.no_grad():
        agent.log_multiplier.fill_(20.0)
    assert losses_of(agent)[1]["multiplier/value"] == 1e6


def test_without_a_gap_there_is_no_multiplier():
    agent = calql(cql_gap=None)
    losses, _ = losses_of(agent)
    assert losses.keys() == ROUTES.keys() - {"multiplier/loss"}
    assert not any("multiplier" in name for name, _ in agent.named_parameters())


def test_the_policy_climbs_the_least_critic_and_pays_for_log_pi():
    agent = calql()
    agent.critic = LinearCritic([0.0, 0.0], [1.0, 4.0])
    with torch.no_grad():
        agent.log_entropy_weight.fill_(math.log(0.3))
    losses, metrics = losses_of(agent)
    assert metrics["actor/q"] == 1
    torch.testing.assert_close(losses["actor/loss"].detach(), -0.3 * metrics["entropy/value"] - 1)


@pytest.mark.parametrize(("log_std", "rises"), [(-4.0, True), (-1.0, False)])
def test_the_entropys_weight_rises_where_the_entropy_is_below_minus_one_a_dimension(log_std, rises):
    agent = calql()
    fixed_policy(agent, (0.0, 0.0, 0.0), log_std)
    with torch.no_grad():
        agent.log_entropy_weight.fill_(0.7)
    losses, metrics = losses_of(agent)
    torch.testing.assert_close(
        losses["entropy/loss"].detach(), 0.7 * (metrics["entropy/value"] + A)
    )
    (gradient,) = torch.autograd.grad(losses["entropy/loss"], agent.log_entropy_weight)
    assert (gradient < 0) == rises


def test_evaluation_takes_tanh_of_the_mean_and_exploration_a_sample(kind):
    agent = calql(kind)
    means = torch.tensor([0.0, 0.5, -2.0])
    fixed_policy(agent, means.tolist(), -1.0)
    observations = make_batch(kind).observations
    torch.testing.assert_close(agent.act(observations), means.tanh().expand(B, A))
    generator, same = (torch.Generator().manual_seed(3) for _ in "ab")
    explored = agent.act(observations, explore=True, generator=generator)
    points = means + math.exp(-1) * torch.randn(B, A, generator=same)
    torch.testing.assert_close(explored, points.tanh())


def test_uniform_actions_fill_the_whole_range():
    agent = calql()
    uniform = agent.sample_noises(500, torch.Generator().manual_seed(0)).uniform
    assert -1 <= uniform.min() < -0.99
    assert 0.99 < uniform.max() < 1


def test_the_policy_and_its_entropys_weight_learn_at_a_rate_of_their_own(sharing):
    agent = calql("pixels", sharing)
    critic, actor = make_optimizer(agent).param_groups
    assert (critic["lr"], actor["lr"]) == (3e-4, 1e-4)
    held = {id(p) for p in actor["params"]}
    assert {id(p) for p in agent.actor.parameters()} | {id(agent.log_entropy_weight)} <= held
    assert id(agent.log_multiplier) not in held
    own = sharing == "separate"
    encoder = agent.encoder.encoders["actor" if own else "shared"]
    assert all((id(p) in held) == own for p in encoder.parameters())


def test_networks_start_orthogonal_without_norms_and_with_a_narrow_policy():
    agent = calql(hidden_dims=(11, 13), critic_hidden_dims=(6, 8, 9))
    assert not agent.critic.mlp.norm_scales
    assert [bias.shape[-1] for bias in agent.critic.mlp.biases] == [6, 8, 9, 1]
    kernels = [agent.critic.mlp.weights[1][0], agent.actor.mlp.hidden[1].weight]
    for kernel in kernels:
        values = torch.linalg.svdvals(kernel.detach())
        torch.testing.assert_close(values, torch.full_like(values, math.sqrt(2)))
    means, log_stds = agent.actor(make_batch("state").observations)
    assert means.abs().max() < 0.2
    torch.testing.assert_close(log_stds, torch.full_like(log_stds, -1), rtol=0, atol=0.2)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("humanoidmaze-medium-navigate", {"cql_weight": 5.0, "cql_gap": 0.8, "discount": 0.995}),
        ("antsoccer-arena-navigate", {"cql_weight": 5.0, "cql_gap": 0.2, "reward_scale": 10.0}),
        ("cube-double-play", {"cql_weight": 0.01, "cql_gap": None, "reward_scale": 10.0}),
        ("scene-play", {"cql_weight": 0.01, "hidden_dims": (256,) * 4}),
        ("puzzle-4x4-play", {"cql_weight": 0.003, "cql_gap": None}),
        # D4RL's 10 r - 5, of rewards that are r - 1 here.
        ("antmaze-large-play-v2", {"cql_gap": 0.8, "reward_scale": 10.0, "reward_shift": 5.0}),
        ("pen-cloned-v1", {"cql_weight": 1.0, "cql_gap": None, "reward_scale": 1.0}),
    ],
)
def test_tasks_have_the_published_settings(task, settings):
    agent = compose(task, "calql").agent
    assert {name: getattr(agent, name) for name in settings} == settings


def test_online_half_of_a_batch_is_the_datasets():
    online = compose("cube-double-play", "calql").online
    assert (online.sampling, online.ratio) == ("ratio", 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("critic_hidden_dims", (16, 0)),
        ("actor_lr", 0.0),
        ("cql_weight", -1.0),
        ("cql_gap", float("nan")),
        ("num_actions", 0),
        ("reward_scale", 0.0),
        ("reward_shift", float("inf")),
        ("target_entropy", float("nan")),
        ("tau", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CalQLConfig(**{field: value})
