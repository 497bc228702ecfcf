"""DeFlow's own mathematics, who trains what, and in which precision."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.agents.deflow import DeFlowConfig
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import UserError
from tests.agents.conftest import SPECS, make_agent, make_batch, make_noises
from tests.agents.test_contract import trained

ROUTES = {
    "critic/loss": ({"critic"}, ("critic",)),
    "flow/loss": ({"bc_flow"}, ("flow",)),
    "actor/q_loss": ({"refinement"}, ("refinement",)),
    "actor/penalty": ({"refinement"}, ("refinement",)),
    "alpha/loss": ({"log_alpha"}, ()),
}


@pytest.mark.parametrize("head", ["critic", "flow", "refinement"])
def test_gradients_from_names_the_losses_that_train_a_shared_encoder(head):
    agent = make_agent("pixels", encoder={"gradients_from": (head,)})
    losses, _ = agent(make_batch("pixels"), make_noises(agent))
    for loss, (_, heads) in ROUTES.items():
        assert ("encoder.shared" in trained(agent, losses[loss])) == (head in heads)


def test_a_frozen_encoder_is_trained_by_nothing():
    agent = make_agent("pixels", encoder={"freeze": True})
    for loss in agent(make_batch("pixels"), make_noises(agent))[0].values():
        assert "encoder.shared" not in trained(agent, loss)


def equal_pair(**encoder):
    """A shared agent and a separate one with the same weights in every network and encoder."""
    shared = make_agent("pixels", "shared", encoder=encoder)
    separate = make_agent("pixels", "separate", encoder=encoder)
    state = shared.state_dict()
    for name in separate.state_dict():
        parts = name.split(".")
        source = name
        if parts[:2] in (["encoder", "encoders"], ["encoder", "targets"]):
            source = ".".join([*parts[:2], "shared", *parts[3:]])
        separate.state_dict()[name].copy_(state[source])
    return shared, separate


def test_three_equal_encoders_give_the_losses_of_a_shared_one():
    shared, separate = equal_pair()
    batch, noises = make_batch("pixels"), make_noises(shared)
    ours, theirs = shared(batch, noises)[0], separate(batch, noises)[0]
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "heads", [("critic",), ("critic", "flow"), ("critic", "flow", "refinement")]
)
def test_a_shared_encoders_gradient_is_the_sum_over_its_heads(heads):
    shared, separate = equal_pair(gradients_from=heads)
    batch, noises = make_batch("pixels"), make_noises(shared)
    for agent in (shared, separate):
        sum(agent(batch, noises)[0].values()).backward()
    for name, parameter in shared.encoder.encoders["shared"].named_parameters():
        total = sum(separate.encoder.encoders[h].get_parameter(name).grad for h in heads)
        torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)


def test_without_refinement_the_policy_is_the_base_flow(kind):
    agent = make_agent(kind)
    with torch.no_grad():
        for parameter in agent.refinement.parameters():
            parameter.zero_()
        features = agent.encoder(make_batch(kind).observations)
        noises = make_noises(agent).base_action
        actions, displacements = agent.policy(features, noises)
        base = agent.base_actions(features["flow"], noises)
    assert displacements.abs().max() == 0
    assert torch.equal(actions, base)


@pytest.mark.parametrize(("delta", "sign"), [(1e-6, 1), (1e3, -1)])
def test_the_multiplier_rises_while_the_divergence_exceeds_its_target(delta, sign):
    agent = make_agent("state", target_divergence=delta)
    losses, metrics = agent(make_batch("state"), make_noises(agent))
    losses["alpha/loss"].backward()
    assert (metrics["actor/divergence"] > delta) == (sign > 0)
    assert torch.sign(-agent.log_alpha.grad) == sign  # descent moves against the gradient


def test_the_divergence_is_the_mean_square_before_clipping():
    agent = make_agent("state")
    with torch.no_grad():
        agent.refinement.mlp.out.weight.zero_()
        agent.refinement.mlp.out.bias.copy_(torch.tensor([3.0, 0.0, -4.0]))
    _, metrics = agent(make_batch("state"), make_noises(agent))
    assert metrics["actor/divergence"].item() == pytest.approx(25 / 3)


def test_a_fixed_alpha_enters_the_penalty_once():
    agent = make_agent("state", use_lagrange=False, alpha=7.0)
    losses, metrics = agent(make_batch("state"), make_noises(agent))
    expected = 7.0 * metrics["actor/divergence"].item()
    assert losses["actor/penalty"].item() == pytest.approx(expected)
    assert "alpha/loss" not in losses


def test_the_normaliser_makes_the_q_loss_independent_of_the_critics_scale():
    agent = make_agent("state")
    batch, noises = make_batch("state"), make_noises(agent)
    before = agent(batch, noises)[0]["actor/q_loss"]
    with torch.no_grad():
        agent.critic.mlp.weights[-1].mul_(5)
        agent.critic.mlp.biases[-1].mul_(5)
    torch.testing.assert_close(agent(batch, noises)[0]["actor/q_loss"], before)


def test_the_aggregation_does_not_matter_for_equal_members():
    losses = []
    for q_agg in ("mean", "min"):
        agent = make_agent("state", q_agg=q_agg)
        with torch.no_grad():
            for parameter in agent.target_critic.parameters():
                parameter[1] = parameter[0]
        losses.append(agent(make_batch("state"), make_noises(agent))[0]["critic/loss"])
    torch.testing.assert_close(*losses)


def test_min_lowers_the_target_of_unequal_members():
    agents = [make_agent("state", q_agg=how) for how in ("mean", "min")]
    batch = make_batch("state")._replace(masks=torch.ones(7))
    with torch.no_grad():
        for agent in agents:
            agent.target_critic.mlp.biases[-1][0] = 1e4  # mean: about 5,000; min: about 0
    mean, least = (a(batch, make_noises(a))[0]["critic/loss"] for a in agents)
    assert mean > 1e6 > least


def test_no_bootstrap_where_the_mask_is_zero():
    agent = make_agent("state")
    batch = make_batch("state")._replace(masks=torch.zeros(7))
    other = batch._replace(next_observations=batch.next_observations + 1)
    noises = make_noises(agent)
    assert torch.equal(
        agent(batch, noises)[0]["critic/loss"], agent(other, noises)[0]["critic/loss"]
    )


def test_bfloat16_does_not_quantise_a_large_q(kind, sharing):
    agent = make_agent(kind, sharing)
    with torch.no_grad():
        for weight in (agent.critic.mlp.weights[-1], agent.target_critic.mlp.weights[-1]):
            weight.mul_(1e-3)
        agent.critic.mlp.biases[-1].fill_(-150.3)
        agent.target_critic.mlp.biases[-1].fill_(-150.3)
    batch = make_batch(kind)
    with torch.autocast("cpu", torch.bfloat16):
        losses, metrics = agent(batch, make_noises(agent))
    assert metrics["critic/q_mean"].item() == pytest.approx(-150.3, abs=0.02)
    assert {value.dtype for value in (*losses.values(), *metrics.values())} == {torch.float32}


def test_bfloat16_keeps_the_divergence_and_the_ends_of_all_heads_in_float32():
    agent = make_agent("state")
    features = {head: torch.randn(7, 5) for head in ("critic", "flow", "refinement")}
    with torch.autocast("cpu", torch.bfloat16):
        actions, displacements = agent.policy(features, make_noises(agent).base_action)
        q = agent.critic(features["critic"], actions)
    assert (actions.dtype, displacements.dtype, q.dtype) == (torch.float32,) * 3


def test_the_target_critic_reads_a_slow_copy_of_the_critics_encoder(sharing):
    agent = make_agent("pixels", sharing)
    source = agent.encoder.encoders["shared" if sharing == "shared" else "critic"]
    with torch.no_grad():
        source.dense.bias.fill_(1.0)
    agent.update_targets(0)
    (target,) = agent.encoder.targets.values()
    moved = target.dense.bias
    torch.testing.assert_close(moved, torch.full_like(moved, 0.005))


def test_a_policy_of_the_state_alone_does_not_see_the_base_action():
    agent = make_agent("state", refine_base_action=False)
    features, seeds = torch.randn(7, 5), (1, 2)
    moved = [agent.refine(features, make_noises(agent, seed).base_action)[1] for seed in seeds]
    assert torch.equal(*moved)
    other = make_agent("state")
    moved = [other.refine(features, make_noises(other, seed).base_action)[1] for seed in seeds]
    assert not torch.equal(*moved)


def q_of(agent, observations, actions):
    with torch.no_grad():
        return agent.critic(agent.encoder(observations)["critic"], actions).mean(0)


def test_max_q_refines_the_proposal_with_the_greatest_q(kind):
    agent = make_agent(kind, inference="max_q", num_proposals=6)
    observations, dim = make_batch(kind).observations, agent.spec.action_dim
    acted = agent.act(observations, generator=torch.Generator().manual_seed(3))
    noises = torch.randn(7, 6 * dim, generator=torch.Generator().manual_seed(3)).view(7, 6, dim)
    with torch.no_grad():
        features = agent.encoder(observations)
        base = [agent.base_actions(features["flow"], noises[:, k]) for k in range(6)]
        q = torch.stack([q_of(agent, observations, actions) for actions in base])  # (K, B)
        best = torch.stack(base)[q.argmax(0), torch.arange(7)]
        refined, _ = agent.refine(features["refinement"], best)
    torch.testing.assert_close(acted, refined)
    assert len(q.argmax(0).unique()) > 1


def test_iterating_never_lowers_q_below_that_of_one_refinement(kind):
    agents = [make_agent(kind, inference=how) for how in ("sample", "iterate")]
    observations = make_batch(kind).observations
    once, best = (a.act(observations, generator=torch.Generator().manual_seed(3)) for a in agents)
    assert (q_of(agents[0], observations, best) >= q_of(agents[0], observations, once)).all()
    assert not torch.equal(once, best)


def test_a_frozen_base_flow_and_its_encoder_stay_as_they_are(kind, sharing):
    agent = make_agent(kind, sharing, freeze_bc_flow=True)
    losses, _ = agent(make_batch(kind), make_noises(agent))
    assert "flow/loss" not in losses
    sum(losses.values()).backward()
    optimizer = torch.optim.Adam(agent.parameter_groups(), lr=0.1)
    noises, observations = make_noises(agent).base_action, make_batch(kind).observations
    before = agent.base_actions(agent.features(observations, "flow"), noises)
    optimizer.step()
    assert torch.equal(agent.base_actions(agent.features(observations, "flow"), noises), before)


@pytest.mark.parametrize("algo", ["deflow", "deflow_floq"])
@pytest.mark.parametrize("fixed", [False, True])
def test_going_online_freezes_the_base_flow_where_asked_and_nothing_else(
    kind, sharing, algo, fixed
):
    agent = make_agent(kind, sharing, algo, fix_bc_flow_online=fixed)
    before = {name for name, p in agent.named_parameters() if p.requires_grad}
    agent.begin_online()
    losses, _ = agent(make_batch(kind), make_noises(agent))
    assert ("flow/loss" in losses) == (not fixed)
    sum(losses.values()).backward()
    learning = {name for name, p in agent.named_parameters() if p.grad is not None}
    # A shared encoder, which the flow alone trains, stops with it.
    of_the_flow = ("bc_flow.", "encoder.encoders.flow.", "encoder.encoders.shared.")
    stopped = {name for name in before if name.startswith(of_the_flow)}
    assert learning == before - (stopped if fixed else set())


@pytest.mark.parametrize("head", ["critic", "refinement"])
def test_a_shared_encoder_that_others_train_goes_on_beside_the_copy_of_a_frozen_flow(head):
    agent = make_agent(
        "pixels", encoder={"gradients_from": ("flow", head)}, fix_bc_flow_online=True
    )
    agent.begin_online()
    losses, _ = agent(make_batch("pixels"), make_noises(agent))
    sum(losses.values()).backward()
    learning = {name for name, p in agent.encoder.named_parameters() if p.grad is not None}
    assert learning == {n for n, _ in agent.encoder.named_parameters() if "encoders.shared." in n}
    optimizer = torch.optim.Adam(agent.parameter_groups(), lr=0.1)
    noises, observations = make_noises(agent).base_action, make_batch("pixels").observations
    before = agent.base_actions(agent.features(observations, "flow"), noises)
    optimizer.step()
    assert torch.equal(agent.base_actions(agent.features(observations, "flow"), noises), before)


@pytest.mark.parametrize("theirs", ["shared", "separate"])
def test_a_base_flow_of_another_agent_samples_what_it_sampled_there(kind, sharing, theirs):
    source = make_agent(kind, theirs)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.5)
    for frozen in (False, True):
        agent = make_agent(kind, sharing, freeze_bc_flow=frozen)
        agent.load_bc_flow(source.state_dict())
        noises, observations = make_noises(agent).base_action, make_batch(kind).observations
        ours, wanted = (
            a.base_actions(a.features(observations, "flow"), noises) for a in (agent, source)
        )
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_divergence", 0.0),
        ("target_divergence", float("nan")),
        ("discount", 1.0),
        ("tau", 0.0),
        ("flow_steps", 0),
        ("num_proposals", 0),
        ("alpha", -1.0),
        ("hidden_dims", (4, 0)),
        ("lr", 0.0),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        DeFlowConfig(**{field: value})


def test_a_divergence_left_to_the_data_must_be_a_number_before_there_is_an_agent():
    with pytest.raises(UserError, match="training puts the data's number in its place"):
        make_agent("state", target_divergence="auto")


def test_an_unknown_head_is_refused_by_name():
    config = EncoderConfig(gradients_from=("critic", "policy"))
    with pytest.raises(ValueError, match=r"policy.*critic, flow, refinement"):
        ObservationEncoder(
            SPECS["state"], config, ("critic", "flow", "refinement"), gradients_from=("critic",)
        )
