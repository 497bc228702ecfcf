"""What a GPU must do as a CPU does; skipped where there is none."""

from __future__ import annotations

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from deflow_vision.agents import AGENTS
from deflow_vision.config import load
from deflow_vision.training.loop import make_optimizer, train
from deflow_vision.training.update import GraphedUpdate, Update
from deflow_vision.training.watch import BEHIND, DivergedError, Watch
from tests.agents.conftest import make_agent, make_batch, make_noises, stages

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = torch.device("cuda", 0)
UPDATES = 12


@pytest.fixture(params=["shared", "separate"])
def sharing(request):
    return request.param


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Products in float32 throughout, and each test's own precision."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    AcceleratorState._reset_state(True)


def to_device(values):
    return type(values)(*(None if x is None else x.to(DEVICE) for x in values))


@pytest.fixture(params=AGENTS)
def algo(request):
    return request.param


def learned(agent, kind, update_class):
    """Parameters, losses and metrics after some updates on the GPU."""
    agent = copy.deepcopy(agent).to(DEVICE)
    optimizer = make_optimizer(agent)
    watch = Watch(agent, optimizer, Path())
    update = update_class(agent, agent, optimizer, Accelerator(), watch)
    rows = []
    for step in range(UPDATES):
        batch, noises = make_batch(kind, step), make_noises(agent, step)
        values = update(to_device(batch), to_device(noises), step)
        rows.append({name: float(value) for name, value in values.items()})
    return {name: p.detach().cpu() for name, p in agent.state_dict().items()}, rows


def test_losses_are_those_of_the_cpu(algo, kind, sharing):
    agent = make_agent(kind, sharing, algo)
    on_gpu = copy.deepcopy(agent).to(DEVICE)
    batch, noises = make_batch(kind), make_noises(agent)
    for stage in stages(agent, algo):
        ours, more = on_gpu(to_device(batch), to_device(noises), stage)
        theirs, _ = agent(batch, noises, stage)
        for name, value in ours.items():
            torch.testing.assert_close(value.cpu(), theirs[name], rtol=1e-4, atol=1e-5)
        assert all(value.device == DEVICE for value in [*ours.values(), *more.values()])


def test_every_learning_parameter_gets_a_gradient_in_bfloat16(algo, kind):
    agent = make_agent(kind, algo=algo).to(DEVICE)
    for stage in stages(agent, algo):
        with torch.autocast("cuda", torch.bfloat16):
            losses, _ = agent(to_device(make_batch(kind)), to_device(make_noises(agent)), stage)
        sum(losses.values()).backward()
    for name, parameter in agent.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_recorded_update_is_the_update(algo, kind):
    agent = make_agent(kind, algo=algo)
    (ours, our_rows), (theirs, their_rows) = (
        learned(agent, kind, kind_of) for kind_of in (GraphedUpdate, Update)
    )
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    for our_row, their_row in zip(our_rows, their_rows, strict=True):
        assert our_row == pytest.approx(their_row, rel=1e-4, abs=1e-6)


def test_frozen_networks_are_recorded_anew():
    agent = make_agent("pixels", fix_bc_flow_online=True).to(DEVICE)
    optimizer = make_optimizer(agent)
    watch = Watch(agent, optimizer, Path())
    update = GraphedUpdate(agent, agent, optimizer, Accelerator(), watch)

    def go_on(steps):
        for step in steps:
            batch, noises = make_batch("pixels", step), make_noises(agent, step)
            values = update(to_device(batch), to_device(noises), step)
        return values

    assert "flow/loss" in go_on(range(6))
    agent.begin_online()
    update.forget()
    before = copy.deepcopy(agent.bc_flow.state_dict())
    assert "flow/loss" not in go_on(range(6, 12))
    for name, value in agent.bc_flow.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", ["state", "pixels"])
@pytest.mark.parametrize("residency", ["ram", "stream", "device"])
def test_a_run_goes_on_from_its_checkpoint(kind, residency, precision, configure, tmp_path):
    flags = ("--data.residency", residency, "--mixed-precision", precision)
    whole = train(configure(kind, tmp_path / "whole", *flags))
    half = train(configure(kind, tmp_path / "half", "--offline-steps", "3", *flags))
    train(load(["--resume", str(half), "--offline-steps", "6"]))
    file = "checkpoints/step_6/agent.safetensors"
    ours, theirs = load_file(half / file), load_file(whole / file)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    assert pd.read_csv(whole / "train.csv")["step"].iloc[-1] == 6


def test_residency_does_not_change_what_is_learnt(configure, tmp_path):
    weights = []
    for residency in ("ram", "device"):
        flags = ("--data.residency", residency)
        run = train(configure("pixels", tmp_path / residency, *flags))
        weights.append(load_file(run / "checkpoints/step_6/agent.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_an_online_run_ends_with_a_checkpoint(configure, tmp_path):
    run = train(configure("own", tmp_path / "run", "--online-steps", "9"))
    assert (run / "checkpoints/step_15/agent.safetensors").exists()


def test_actions_are_those_of_the_cpu(algo, kind):
    agent = make_agent(kind, algo=algo)
    observations = make_batch(kind).observations
    generator = torch.Generator()
    on_gpu = copy.deepcopy(agent).to(DEVICE)
    ours = on_gpu.act(observations.to(DEVICE), generator=generator.manual_seed(0))
    theirs = agent.act(observations, generator=generator.manual_seed(0))
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("update_class", [Update, GraphedUpdate])
def test_an_update_that_is_not_finite_changes_no_weight_though_it_is_noticed_later(
    update_class, tmp_path
):
    agent = make_agent("state").to(DEVICE)
    optimizer = make_optimizer(agent)
    update = update_class(agent, agent, optimizer, Accelerator(), Watch(agent, optimizer, tmp_path))
    for step in range(6):
        batch, noises = make_batch("state", step), make_noises(agent, step)
        update(to_device(batch), to_device(noises), step)
    before = copy.deepcopy(agent.critic.state_dict())
    bad = batch._replace(rewards=batch.rewards * float("inf"))

    def go_on():
        for step in range(6, 8 + BEHIND):
            update(to_device(bad if step == 6 else batch), to_device(noises), step)

    with pytest.raises(DivergedError, match="update 6: critic/loss"):
        go_on()
    for name, value in agent.critic.state_dict().items():
        assert torch.equal(value, before[name])
