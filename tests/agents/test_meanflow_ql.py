"""MeanFlow-QL's own mathematics: the best of its candidates, and an alpha that follows its loss."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.meanflow_ql import MeanFlowQLConfig
from deflow_vision.config import compose
from deflow_vision.meanflow import adaptive_mean, meanflow_errors
from deflow_vision.training.loop import make_optimizer
from tests.agents.conftest import A, B, E, make_agent, make_batch, make_noises

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "actor/flow_loss": ({"flow"}, ("flow",)),
    "actor/q_loss": ({"flow"}, ("flow",)),
    "actor/bound_loss": ({"flow"}, ("flow",)),
}
SMALL = {"policy_dim": 12, "policy_depth": 2, "num_candidates": 4, "alpha": 10.0}
RATES = {"alpha": 0.0, "past_losses": 0.0, "num_past": 0.0}


def prepare(agent):
    """Its transformer begins at zero: no gradient passes it yet, and no action leaves [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def meanflow_ql(kind="state", sharing="shared", **changes):
    return make_agent(kind, sharing, "meanflow_ql", **changes)


def candidates(agent, observations, noises, row):
    """The K actions of a row, (K, A), and their slow Q, (E, K), from an agent of states."""
    features = observations[row].expand(len(noises[row]), -1)
    actions = agent.one_step(features, noises[row]).clamp(-1, 1)
    return actions, agent.target_critic(features, actions)


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_the_target_is_at_the_best_candidate_by_the_mean_of_the_slow_critics(q_agg):
    agent = meanflow_ql(q_agg=q_agg, discount=0.5)
    with torch.no_grad():
        agent.target_critic.mlp.biases[-1].add_(torch.tensor([[[3.0]], [[-1.0]]]))
        next_values = []
        batch, noises = make_batch("state"), make_noises(agent)
        for row in range(B):
            _, q = candidates(agent, batch.next_observations, noises.next_actions, row)
            best = q[:, q.mean(0).argmax()]
            assert best.shape == (E,)
            next_values.append(best.mean() if q_agg == "mean" else best.min())
        target = batch.rewards + 0.5 * batch.masks * torch.stack(next_values)
        wanted = (agent.critic(batch.observations, batch.actions) - target).square().mean()
    torch.testing.assert_close(agent(batch, noises)[0]["critic/loss"].detach(), wanted)


def test_acting_takes_the_best_candidate_by_the_mean_of_the_slow_critics():
    agent = meanflow_ql()
    observations = make_batch("state").observations
    acted = agent.act(observations, generator=torch.Generator().manual_seed(3))
    noises = torch.randn(B, 4 * A, generator=torch.Generator().manual_seed(3)).view(B, 4, A)
    with torch.no_grad():
        for row in range(B):
            actions, q = candidates(agent, observations, noises, row)
            torch.testing.assert_close(acted[row], actions[q.mean(0).argmax()])


def test_the_terms_of_the_policys_loss_are_as_written(kind):
    agent = meanflow_ql(kind, bound_weight=3.0)
    batch, noises = make_batch(kind), make_noises(agent)
    losses, metrics = agent(batch, noises)
    features = agent.encoder(batch.observations)
    errors = meanflow_errors(
        lambda x, t: agent.flow(features["flow"], x, t), batch.actions, noises.flow, noises.times
    )
    flow_loss = adaptive_mean(errors, 0.2, 1e-4)
    torch.testing.assert_close(losses["actor/flow_loss"], 10 * flow_loss)
    torch.testing.assert_close(metrics["flow/error"], errors.mean().detach())
    outputs = agent.flow(features["flow"], noises.action, torch.ones(B))
    q = agent.critic(features["critic"], outputs.clamp(-1, 1)).mean()
    torch.testing.assert_close(losses["actor/q_loss"], -q)
    over, under = (outputs - 1).relu().mean(), (-1 - outputs).relu().mean()
    assert over > 0
    torch.testing.assert_close(losses["actor/bound_loss"], 3 * (over + under))


def test_times_are_those_of_the_grid_or_any():
    times = torch.cat([make_noises(meanflow_ql(num_times=4), s).times for s in range(20)])
    assert set(times.tolist()) == {0.25, 0.5, 0.75, 1.0}
    times = make_noises(meanflow_ql(num_times=0)).times
    assert len(set(times.tolist())) == B


def adapting(losses, **changes):
    """alpha after each look, of an agent that sees these values of its MeanFlow loss."""
    agent = meanflow_ql(alpha_every=1, **{"schedule_steps": 1, **changes})
    found = []
    for step, loss in enumerate(losses, 1):
        agent.flow_loss.fill_(loss)
        agent.update_targets(step)
        found.append(round(agent.alpha.item(), 4))
    return found


def test_alpha_moves_by_a_fifth_where_its_loss_is_five_times_off_its_mean():
    assert adapting([1.0, 1.0, 4.9, 20.0]) == [10, 10, 10, 12]  # mean of three: 2.3
    assert adapting([1.0, 1.0, 0.21, 0.1]) == [10, 10, 10, 8]  # mean of three: 0.737
    assert adapting([1.0, 100.0]) == [10, 10]  # one value is no mean


def test_alpha_stays_within_ten_times_of_its_start():
    rising = adapting([10.0 ** (2 * n) for n in range(18)])
    assert max(rising) == rising[-1] == 100
    falling = adapting([10.0 ** (-2 * n) for n in range(18)])
    assert min(falling) == falling[-1] == 1


def test_alphas_mean_is_of_the_last_twenty_values():
    # The first 24 updates are within the tenth of the run in which alpha stays.
    assert adapting([1e6] * 5 + [1.0] * 19 + [6.0], schedule_steps=250)[-1] == 8
    assert adapting([1e6] * 4 + [1.0] * 20 + [6.0], schedule_steps=250)[-1] == 12


def test_alpha_is_looked_at_in_a_rhythm_and_stays_in_the_first_tenth_of_the_run():
    agent = meanflow_ql(alpha_every=4, schedule_steps=120)
    moved = []
    for step in range(40):
        agent.flow_loss.fill_(1e3**step if step < 10 else 1e30)
        before = agent.alpha.item()
        agent.update_targets(step)
        moved += [step] if agent.alpha.item() != before else []
    assert agent.num_past == 9  # 4, 8, .., 36
    assert moved[:1] == [12]
    assert all(step % 4 == 0 for step in moved)


def test_a_fixed_alpha_stays():
    assert adapting([1.0, 1.0, 100.0], adapt_alpha=False) == [10, 10, 10]


def test_the_loss_that_alpha_follows_is_that_of_the_last_batch():
    agent = meanflow_ql(alpha_every=1)
    batch, noises = make_batch("state"), make_noises(agent)
    metrics = agent(batch, noises)[1]
    agent.update_targets(1)
    torch.testing.assert_close(agent.past_losses[-1], metrics["flow/loss"])


def test_a_run_that_goes_on_has_its_alpha_and_what_it_follows():
    agent, other = meanflow_ql(alpha_every=1, schedule_steps=1), meanflow_ql()
    for step, loss in enumerate([1.0, 1.0, 100.0], 1):
        agent.flow_loss.fill_(loss)
        agent.update_targets(step)
    other.load_state_dict(agent.state_dict())
    assert other.alpha == 12
    assert other.num_past == 3
    assert other.past_losses[-3:].tolist() == [1, 1, 100]
    assert "flow_loss" not in agent.state_dict()


def test_the_policys_learning_rate_rises_and_falls_and_the_critics_is_constant():
    agent = meanflow_ql(schedule_steps=1000)
    critic, flow = make_optimizer(agent).param_groups
    assert "schedule" not in critic
    assert (critic["lr"], flow["lr"]) == (3e-4, 1e-4)
    assert critic["clip"] == flow["clip"] == 1
    factors = [flow["schedule"](step) for step in (0, 25, 50, 525, 1000, 2000)]
    assert factors == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1])


def test_the_settings_know_how_long_a_run_is():
    assert compose("humanoidmaze-large-navigate", "meanflow_ql").agent.alpha == 6000
    for task in ("cube-single-play", "visual-scene-play", "pen-human-v1"):
        config = compose(task, "meanflow_ql")
        assert config.agent.schedule_steps == config.offline_steps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", 0.0),
        ("alpha_every", 0),
        ("num_candidates", 0),
        ("num_times", -1),
        ("adaptive_power", float("nan")),
        ("adaptive_offset", 0.0),
        ("bound_weight", -1.0),
        ("flow_lr", 0.0),
        ("schedule_steps", 0),
        ("policy_dim", 0),
        ("policy_depth", 0),
        ("max_grad_norm", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        MeanFlowQLConfig(**{field: value})
