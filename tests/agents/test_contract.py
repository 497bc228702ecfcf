"""What every agent must do, over agents x {state, pixels} x {shared, separate}."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from deflow_vision.agents import AGENTS
from deflow_vision.networks import products
from tests.agents.conftest import A, B, make_agent, make_batch, make_noises, stages, traits


@pytest.fixture(params=AGENTS)
def algo(request):
    return request.param


@pytest.fixture
def agent(algo, kind, sharing):
    return make_agent(kind, sharing, algo)


def clone(batch):
    return type(batch)(*(None if x is None else x.clone() for x in batch))


def test_losses_are_finite_scalars_and_metrics_are_detached(agent, algo, kind):
    for stage in stages(agent, algo):
        losses, metrics = agent(make_batch(kind), make_noises(agent), stage)
        assert losses
        for value in losses.values():
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert torch.isfinite(value)
        assert not any(value.requires_grad for value in metrics.values())
        assert not losses.keys() & metrics.keys()


def test_forward_leaves_the_batch_unchanged(agent, algo, kind):
    batch = make_batch(kind)
    before = clone(batch)
    for stage in stages(agent, algo):
        agent(batch, make_noises(agent), stage)
    for after, was in zip(batch, before, strict=True):
        assert torch.equal(after, was)


def test_forward_is_deterministic(agent, algo, kind):
    batch, noises = make_batch(kind), make_noises(agent)
    for stage in stages(agent, algo):
        first, second = (agent(batch, noises, stage)[0] for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_losses_and_metrics_lie_on_the_agents_device(algo, monkeypatch):
    # They are stacked to be logged. `meta` stands for a GPU; it has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    agent = make_agent("state", algo=algo)
    batch, noises = (
        type(x)(*(field.to("meta") for field in x))
        for x in (make_batch("state"), make_noises(agent))
    )
    agent.to("meta")
    for stage in stages(agent, algo):
        losses, metrics = agent(batch, noises, stage)
        for name, value in {**losses, **metrics}.items():
            assert value.device.type == "meta", name


@pytest.mark.parametrize("bf16", [False, True])
def test_no_product_takes_the_plain_loop_of_onednn(
    agent, algo, kind, bf16, monkeypatch, onednn_kernels
):
    # It takes hundreds of times as long; strides for which there is no kernel lead there.
    if bf16 and torch.bfloat16 not in products._onednn_dtypes():
        pytest.skip("needs instructions for bfloat16")
    monkeypatch.setattr(products, "lacks_avx512", lambda: False)
    monkeypatch.setattr(products, "NARROW", 0)
    size = products.FEW_ROWS + 3
    batch, noises = make_batch(kind, size=size), make_noises(agent, size=size)

    def learn_and_act():
        for stage in stages(agent, algo):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses, _ = agent(batch, noises, stage)
                sum(losses.values()).backward()
                agent.act(batch.observations)

    names = onednn_kernels(learn_and_act)
    assert names
    assert not [name for name in names if "ref" in name]


@pytest.mark.parametrize("bf16", [False, True])
def test_every_learning_parameter_gets_a_gradient(agent, algo, kind, bf16):
    # Under autocast too: a cast that was cached without gradient must not be used with one.
    for stage in stages(agent, algo):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses, _ = agent(make_batch(kind), make_noises(agent), stage)
        sum(losses.values()).backward()
    for name, parameter in agent.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_each_loss_trains_what_its_route_names_and_nothing_else(agent, algo, kind):
    routes, seen = traits(algo).ROUTES, set()
    for stage in stages(agent, algo):
        losses, _ = agent(make_batch(kind), make_noises(agent), stage)
        for loss, value in losses.items():
            seen.add(loss)
            networks, heads = routes[loss]
            assert trained(agent, value) == networks | encoders(agent, kind, heads), loss
    assert seen == set(routes)


def trained(agent, loss):
    """Networks, and encoders as "encoder.<name>", that get a nonzero gradient."""
    names, parameters = zip(*agent.named_parameters(), strict=True)
    learning = [(n, p) for n, p in zip(names, parameters, strict=True) if p.requires_grad]
    gradients = torch.autograd.grad(
        loss, [p for _, p in learning], retain_graph=True, allow_unused=True
    )
    found = set()
    for (name, _), gradient in zip(learning, gradients, strict=True):
        if gradient is not None and gradient.abs().max() > 0:
            parts = name.split(".")
            found.add(f"encoder.{parts[2]}" if parts[0] == "encoder" else parts[0])
    return found


def encoders(agent, kind, heads):
    """The encoders that losses of these heads should train."""
    if kind == "state":
        return set()
    if agent.encoder.shared:
        return {"encoder.shared"} if set(heads) & set(agent.encoder.gradients_from) else set()
    return {f"encoder.{head}" for head in heads}


def test_actions_lie_in_range_and_depend_on_the_generator_alone(agent, kind):
    observations = make_batch(kind).observations
    for explore in (False, True):
        actions = [
            agent.act(observations, explore=explore, generator=torch.Generator().manual_seed(3))
            for _ in "ab"
        ]
        assert actions[0].shape == (B, A)
        assert actions[0].abs().max() <= 1
        assert torch.equal(*actions)
        assert not actions[0].requires_grad


def test_an_episodes_action_does_not_depend_on_the_others_in_the_batch(agent, kind):
    observations = make_batch(kind).observations
    generators = [torch.Generator().manual_seed(i) for i in range(B)]
    together = agent.act(observations, generator=generators)
    alone = agent.act(observations[4:5], generator=[torch.Generator().manual_seed(4)])
    torch.testing.assert_close(together[4:5], alone, rtol=1e-5, atol=1e-5)


def test_features_are_given_for_every_head(agent, kind):
    for head in agent.encoder.heads:
        features = agent.features(make_batch(kind).observations, head)
        assert features.shape == (B, agent.encoder.feature_dim)
        assert not features.requires_grad


def test_targets_move_by_exactly_tau(agent, algo):
    rates = getattr(traits(algo), "RATES", {})
    state = {name: value.clone() for name, value in agent.state_dict().items()}
    learning = {name for name, p in agent.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in agent.named_parameters():
            if name in learning:
                parameter.add_(1.0)
    agent.update_targets(0)
    moved = agent.state_dict()
    for name in state.keys() - learning:
        rate = next((r for start, r in rates.items() if name.startswith(start)), None)
        rate = agent.config.tau if rate is None else rate
        torch.testing.assert_close(moved[name], state[name] + rate, rtol=0, atol=1e-6)


def test_the_state_round_trips(agent, algo, kind):
    other = make_agent(kind, "shared" if agent.encoder.shared else "separate", algo)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(agent.state_dict())
    batch, noises = make_batch(kind), make_noises(agent)
    for stage in stages(agent, algo):
        ours, theirs = (a(batch, noises, stage)[0] for a in (agent, other))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_optimizer_holds_each_learning_parameter_once(agent):
    held = [p for group in agent.parameter_groups() for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in agent.parameters() if p.requires_grad}


def test_schedules_hold_no_agent(algo):
    # Accelerate deep-copies the groups: a bound method would bring a second agent with it.
    for group in make_agent("state", algo=algo).parameter_groups():
        schedule = group.get("schedule")
        assert copy.deepcopy(schedule) is schedule


@pytest.mark.usefixtures("unchecked")
def test_each_stage_compiles_to_one_graph(algo):
    agent = make_agent("state", algo=algo)
    expected = copy.deepcopy(agent)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(agent, backend=counter, fullgraph=True, dynamic=False)
    steps = getattr(traits(algo), "STEPS", (0,))
    for seed in range(2):
        for step in steps:
            batch, noises = make_batch("state", seed), make_noises(agent, seed)
            losses, _ = compiled(batch, noises, agent.stage(step))
            wanted, _ = expected(batch, noises, expected.stage(step))
            for name in wanted:
                torch.testing.assert_close(losses[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= len(steps)
