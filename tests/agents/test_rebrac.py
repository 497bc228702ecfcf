"""ReBRAC's own mathematics: two penalties, a normaliser, clipped noise, every second update."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.rebrac import ReBRACConfig, ReBRACNoises
from deflow_vision.config import compose
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/q_loss": ({"actor"}, ("actor",)),
    "actor/penalty": ({"actor"}, ("actor",)),
}
STEPS = (0, 1)


def constant(network, value):
    """Make a critic, or an actor before its tanh, give `value` whatever it sees."""
    mlp = network.mlp
    ends = (
        (mlp.out.weight, mlp.out.bias) if hasattr(mlp, "out") else (mlp.weights[-1], mlp.biases[-1])
    )
    with torch.no_grad():
        ends[0].zero_()
        ends[1].copy_(torch.as_tensor(value))


def rebrac(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "rebrac", **changes)


def test_the_actors_penalty_is_a_sum_over_dimensions_and_a_mean_over_samples():
    agent = rebrac(alpha_actor=0.5)
    constant(agent.actor, [0.0, 0.0, 0.0])
    batch = make_batch("state")._replace(actions=torch.tensor([0.1, -0.2, 0.4]).expand(B, A))
    losses, metrics = agent(batch, make_noises(agent), True)
    assert metrics["actor/distance"].item() == pytest.approx(0.01 + 0.04 + 0.16)
    assert losses["actor/penalty"].item() == pytest.approx(0.5 * 0.21)


def test_the_target_pays_for_the_sum_of_squared_distances_to_the_datas_next_action():
    agent = rebrac(alpha_critic=2.0, discount=0.9)
    for network, value in ((agent.critic, 0.0), (agent.target_critic, 10.0)):
        constant(network, value)
    constant(agent.target_actor, [0.0, 0.0, 0.0])
    batch = make_batch("state")._replace(
        rewards=torch.full((B,), -1.0),
        masks=torch.ones(B),
        next_actions=torch.tensor([0.1, -0.2, 0.4]).expand(B, A),
    )
    losses, metrics = agent(batch, ReBRACNoises(torch.zeros(B, A)), False)
    target = -1 + 0.9 * (10 - 2 * 0.21)
    assert losses["critic/loss"].item() == pytest.approx(target**2, rel=1e-5)
    assert metrics["critic/next_distance"].item() == pytest.approx(0.21)


def test_neither_q_nor_the_penalty_counts_where_the_mask_is_zero():
    agent = rebrac(alpha_critic=2.0)
    batch = make_batch("state")._replace(masks=torch.zeros(B))
    other = batch._replace(next_actions=-batch.next_actions)
    noises = make_noises(agent)
    ours, theirs = (agent(b, noises, False)[0]["critic/loss"] for b in (batch, other))
    assert torch.equal(ours, theirs)


def test_the_least_critic_makes_the_target_and_leads_the_actor():
    agent = rebrac(alpha_critic=0.0)
    for network in (agent.critic, agent.target_critic):
        constant(network, torch.tensor([-3.0, -7.0]).view(2, 1, 1))
    batch = make_batch("state")._replace(rewards=torch.zeros(B), masks=torch.ones(B))
    losses, metrics = agent(batch, make_noises(agent), True)
    target = 0.99 * -7
    wanted = ((-3 - target) ** 2 + (-7 - target) ** 2) / 2
    assert losses["critic/loss"].item() == pytest.approx(wanted, rel=1e-5)
    assert metrics["actor/q"].item() == pytest.approx(-7)


def test_lambda_makes_the_q_loss_independent_of_the_critics_scale():
    agent = rebrac()
    batch, noises = make_batch("state"), make_noises(agent)
    before, metrics = agent(batch, noises, True)
    with torch.no_grad():
        agent.critic.mlp.weights[-1].mul_(5)
        agent.critic.mlp.biases[-1].mul_(5)
    after, scaled = agent(batch, noises, True)
    torch.testing.assert_close(after["actor/q_loss"], before["actor/q_loss"])
    torch.testing.assert_close(scaled["actor/q"], 5 * metrics["actor/q"])


def test_lambda_is_the_mean_absolute_least_q_of_the_whole_batch(monkeypatch):
    agent = rebrac()
    batch, noises = make_batch("state"), make_noises(agent)
    seen = []

    def over_all_processes(x):
        seen.append(x.detach())
        return torch.tensor(4.0)

    monkeypatch.setattr("deflow_vision.agents.rebrac.global_mean", over_all_processes)
    losses, metrics = agent(batch, noises, True)
    with torch.no_grad():
        q = agent.critic(batch.observations, agent.actor(batch.observations)).amin(0)
    torch.testing.assert_close(seen, [q.abs()])
    torch.testing.assert_close(losses["actor/q_loss"].detach(), -q.mean() / 4)
    torch.testing.assert_close(metrics["actor/q"], q.mean())


def seen_by_target_critic(agent, noises):
    """The next actions that the target's critic judges."""
    seen = []
    agent.target_critic.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    agent(make_batch("state"), ReBRACNoises(noises), False)
    return seen[0]


def test_the_noise_of_the_next_action_is_scaled_and_clipped():
    agent = rebrac()
    constant(agent.target_actor, [0.0, 0.0, 0.0])
    noises = torch.tensor([1.0, 100.0, -100.0]).expand(B, A)
    wanted = torch.tensor([0.2, 0.5, -0.5]).expand(B, A)
    torch.testing.assert_close(seen_by_target_critic(agent, noises), wanted)


def test_the_next_action_stays_in_range_with_its_noise():
    agent = rebrac()
    constant(agent.target_actor, [20.0, -20.0, 20.0])
    noises = torch.tensor([100.0, -100.0, -100.0]).expand(B, A)
    wanted = torch.tensor([1.0, -1.0, 0.5]).expand(B, A)
    torch.testing.assert_close(seen_by_target_critic(agent, noises), wanted)


def test_the_next_action_is_the_slow_actors():
    agent = rebrac()
    noises = torch.zeros(B, A)
    before = seen_by_target_critic(agent, noises)
    constant(agent.actor, [1.0, 1.0, 1.0])
    assert torch.equal(seen_by_target_critic(agent, noises), before)
    constant(agent.target_actor, [1.0, 1.0, 1.0])
    assert not torch.equal(seen_by_target_critic(agent, noises), before)


def test_the_slow_actor_reads_a_slow_copy_of_its_own_encoder(sharing):
    agent = rebrac("pixels", sharing)
    names = {"shared"} if sharing == "shared" else {"critic", "actor"}
    assert set(agent.encoder.targets) == names
    observations = make_batch("pixels").observations
    features = agent.encoder.encode_targets(observations, ("critic", "actor"))
    for head in ("critic", "actor"):
        assert torch.equal(features[head], agent.encoder.encode_target(observations, head))
    assert torch.equal(features["critic"], features["actor"]) == (sharing == "shared")


def test_a_shared_slow_encoder_looks_once_at_the_next_observations(sharing):
    agent = rebrac("pixels", sharing)
    calls = []
    for target in agent.encoder.targets.values():
        target.register_forward_hook(lambda *_: calls.append(1))
    agent(make_batch("pixels"), make_noises(agent), True)
    assert len(calls) == (1 if sharing == "shared" else 2)


def test_the_actor_learns_every_second_update():
    agent = rebrac()
    assert [agent.stage(step) for step in range(5)] == [True, False, True, False, True]
    losses = [set(agent(make_batch("state"), make_noises(agent), s)[0]) for s in (True, False)]
    assert losses == [set(ROUTES), {"critic/loss"}]


def test_slow_copies_stay_while_the_actor_does_not_learn(kind):
    agent = rebrac(kind)
    with torch.no_grad():
        for parameter in agent.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    agent.update_targets(1)
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    agent.update_targets(2)
    moved = {n for n, value in agent.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {name for name, p in agent.named_parameters() if not p.requires_grad}


def test_the_policy_is_deterministic_and_explores_with_clipped_noise(kind):
    agent = rebrac(kind, actor_noise=100.0)
    constant(agent.actor, [0.0, 0.0, 0.0])
    observations = make_batch(kind).observations
    acted = [agent.act(observations, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    assert torch.equal(*acted)
    explored = agent.act(observations, explore=True, generator=torch.Generator().manual_seed(1))
    assert explored.abs().max() == 0.5
    assert explored.unique().numel() > 1


def test_the_first_actions_are_near_zero():
    agent = rebrac()
    assert agent.act(make_batch("state").observations).abs().max() < 0.2


@pytest.mark.parametrize(
    ("task", "weights"),
    [
        ("cube-single-play", (1.0, 0.0)),
        ("antmaze-umaze-v2", (0.003, 0.002)),
        ("antmaze-large-diverse-v2", (0.002, 0.002)),
        ("hammer-cloned-v1", (0.1, 0.5)),
    ],
)
def test_a_task_of_a_family_may_have_settings_of_its_own(task, weights):
    agent = compose(task, "rebrac").agent
    assert (agent.alpha_actor, agent.alpha_critic) == weights


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha_actor", -0.1),
        ("alpha_critic", float("nan")),
        ("actor_every", 0),
        ("actor_noise", -0.1),
        ("actor_noise_clip", -0.1),
        ("tau", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        ReBRACConfig(**{field: value})
