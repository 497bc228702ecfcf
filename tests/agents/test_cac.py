"""CAC's own mathematics: its backup, its two-critic ratio, its choice of an action."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deflow_vision.agents.cac import CACConfig
from deflow_vision.config import compose
from deflow_vision.training.loop import make_optimizer
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/consistency_loss": ({"actor"}, ("actor",)),
    "actor/q_loss": ({"actor"}, ("actor",)),
}
SMALL = {"backup_actions": 4, "num_candidates": 6, "actor_target_start": 0, "schedule_steps": 100}
RATES = {"target_actor": 0.01}
SMALL["actor_tau"] = RATES["target_actor"]


def cac(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "cac", **changes)


class LinearCritic(nn.Module):
    """Q_i(s, a) = w_i a_0 + b_i."""

    def __init__(self, slopes, offsets=(0.0, 0.0)):
        super().__init__()
        self.slopes, self.offsets = (nn.Parameter(torch.tensor(x)) for x in (slopes, offsets))

    def forward(self, features, actions):
        return self.slopes.unsqueeze(-1) * actions[:, 0] + self.offsets.unsqueeze(-1)


def losses_of(agent, batch, noises, step=0):
    return agent(batch, noises, agent.stage(step))


def slow_actions(agent, batch, noises):
    """The slow policy's actions at the next states, (B, K, A), a row at a time."""
    return torch.stack(
        [
            agent._sample(agent.target_actor, batch.next_observations[i].expand(len(z), -1), z)
            for i, z in enumerate(noises.next_actions)
        ]
    )


def test_the_target_takes_the_best_action_of_each_critic_and_then_the_least_critic():
    agent = cac(discount=0.9)
    agent.critic, agent.target_critic = (
        LinearCritic([0.0, 0.0]),
        LinearCritic([1.0, -2.0], [0.0, 1.0]),
    )
    batch, noises = make_batch("state"), make_noises(agent)
    first = slow_actions(agent, batch, noises)[..., 0]  # (B, K)
    best = torch.minimum(first.amax(1), 1 - 2 * first.amin(1))
    target = batch.rewards + 0.9 * batch.masks * best
    loss = losses_of(agent, batch, noises)[0]["critic/loss"]
    torch.testing.assert_close(loss.detach(), 2 * target.square().mean().detach())


def test_rewards_are_scaled_and_then_shifted_in_the_target_alone():
    agent = cac(reward_scale=4.0, reward_shift=2.0)
    agent.critic = LinearCritic([0.0, 0.0])
    batch = make_batch("state")._replace(masks=torch.zeros(B))
    loss = losses_of(agent, batch, make_noises(agent))[0]["critic/loss"]
    torch.testing.assert_close(loss.detach(), 2 * (4 * batch.rewards + 2).square().mean())


def test_q_norm_divides_the_targets_by_their_deviation_without_moving_their_mean_to_zero():
    agent = cac(q_norm=True)
    agent.critic = LinearCritic([0.0, 0.0])
    batch = make_batch("state")._replace(masks=torch.zeros(B))
    _, metrics = losses_of(agent, batch, make_noises(agent))
    wanted = batch.rewards.mean() / batch.rewards.std(correction=0)
    torch.testing.assert_close(metrics["critic/target"], wanted)


@pytest.mark.parametrize(("coin", "climbed"), [(0.2, 0), (0.8, 1)])
def test_a_coin_decides_which_critic_is_climbed_and_which_one_normalises(coin, climbed):
    agent = cac(eta=0.5)
    agent.critic = LinearCritic([0.0, 0.0], [3.0, -6.0])
    noises = make_noises(agent)._replace(coin=torch.tensor([coin]))
    loss = losses_of(agent, make_batch("state"), noises)[0]["actor/q_loss"]
    values = (3.0, -6.0)
    assert loss.item() == pytest.approx(-0.5 * values[climbed] / abs(values[1 - climbed]))


def test_the_gradient_of_q_passes_through_every_evaluation_of_the_policy():
    agent = cac()
    noises = make_noises(agent)
    noises = noises._replace(action=noises.action * 1e-3)
    calls = []
    agent.actor.register_forward_hook(
        lambda _, inputs, output: output.requires_grad and calls.append(output)
    )
    losses, _ = losses_of(agent, make_batch("state"), noises)
    _, *sampled = calls  # the first is the consistency loss's
    assert len(sampled) == 2
    gradients = torch.autograd.grad(losses["actor/q_loss"], sampled)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_the_number_of_times_comes_from_the_step_and_changes_the_loss():
    agent = cac(schedule_steps=100)
    batch, noises = make_batch("state"), make_noises(agent)
    (early, at_start), (late, at_end) = (losses_of(agent, batch, noises, step) for step in (0, 99))
    assert (at_start["actor/num_times"], at_end["actor/num_times"]) == (2, 150)
    assert early["actor/consistency_loss"] != late["actor/consistency_loss"]
    assert torch.equal(early["critic/loss"], late["critic/loss"])


def test_the_slow_policy_moves_every_fifth_update_once_it_has_begun():
    agent = cac(actor_target_start=7, actor_target_every=5)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.add_(1.0)
    moved = []
    for step in range(16):
        before = agent.target_actor.mlp.out.bias.clone()
        agent.update_targets(step)
        if not torch.equal(agent.target_actor.mlp.out.bias, before):
            moved.append(step)
    assert moved == [10, 15]


class TableCritic(nn.Module):
    """Q_i of candidates 0, 1, 2, 0, 1, ... whatever they are; the second member is the least."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, features, actions):
        q = self.values.repeat(len(actions) // len(self.values))
        return torch.stack([-3 * q + 100, q])


def test_acting_picks_by_the_softmax_of_the_least_slow_critic():
    agent = cac(num_candidates=3)
    values = torch.tensor([1.0, 0.0, 2.0])
    agent.target_critic = TableCritic(values)
    candidates = torch.tensor([-0.5, 0.0, 0.5])
    agent._sample = lambda actor, features, noises: (
        candidates.repeat(len(noises) // 3).unsqueeze(-1).expand(-1, A)
    )
    acted = agent.act(torch.zeros(5000, 5), generator=torch.Generator().manual_seed(0))[:, 0]
    shares = torch.stack([(acted == action).float().mean() for action in candidates])
    torch.testing.assert_close(shares, values.softmax(0), rtol=0, atol=0.02)


def test_critic_and_policy_have_a_learning_rate_and_a_bound_of_their_own(sharing):
    agent = cac("pixels", sharing, lr=1e-3, actor_lr=1e-4, max_grad_norm=7.0)
    critic, actor = make_optimizer(agent).param_groups
    assert (critic["lr"], critic["clip"]) == (1e-3, 7.0)
    assert (actor["lr"], actor["clip"]) == (1e-4, 7.0)
    held = {id(p) for p in actor["params"]}
    assert {id(p) for p in agent.actor.parameters()} <= held
    encoders = agent.encoder.encoders
    own = sharing == "separate"
    assert all((id(p) in held) == own for p in encoders["actor" if own else "shared"].parameters())


def test_networks_begin_as_pytorchs_do_without_norms():
    agent = cac()
    assert not agent.critic.mlp.norm_scales
    assert agent.critic.mlp.biases[0].abs().max() > 0
    assert agent.actor.mlp.out.bias.abs().max() > 0


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("cube-single-play", {"eta": 0.003, "q_norm": False, "backup_actions": 10}),
        ("antmaze-umaze-v2", {"eta": 0.01, "q_norm": True, "backup_actions": 1}),
        ("antmaze-medium-play-v2", {"actor_lr": 1e-3, "q_norm": False, "backup_actions": 10}),
        ("antmaze-large-play-v2", {"eta": 4.5, "reward_scale": 4.0, "reward_shift": 2.0}),
        ("pen-human-v1", {"eta": 0.003, "actor_lr": 3e-5}),
    ],
)
def test_a_task_of_a_family_may_have_settings_of_its_own(task, settings):
    agent = compose(task, "cac").agent
    assert {name: getattr(agent, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eta", -1.0),
        ("actor_lr", 0.0),
        ("sampling_steps", 0),
        ("schedule_steps", 0),
        ("backup_actions", 0),
        ("num_candidates", 0),
        ("actor_tau", 1.5),
        ("actor_target_every", 0),
        ("actor_target_start", -1),
        ("max_grad_norm", float("nan")),
        ("reward_scale", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CACConfig(**{field: value})
