"""DeFlow from the base flow of an earlier run."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.config import load
from deflow_vision.training.loop import train
from deflow_vision.training.restore import load_policy
from deflow_vision.types import UserError
from tests.training.test_loop import assert_same_run

FROZEN = ("--agent.freeze-bc-flow", "--seed", "1")


@pytest.fixture
def source(configure, tmp_path, kind):
    return train(configure(kind, tmp_path / "source", "--algo", "bc_flow"))


def flow_of(run, step=None):
    agent, _, _ = load_policy(run, step)
    return {n: p for n, p in agent.state_dict().items() if n.startswith("bc_flow.")}


def test_a_frozen_flow_of_another_run_is_kept_through_training_and_resume(
    source, configure, tmp_path, kind
):
    from_source = ("--agent.bc-flow-from", str(source), *FROZEN)
    run = train(configure(kind, tmp_path / "whole", *from_source))
    wanted = flow_of(source)
    assert all(torch.equal(p, wanted[n]) for n, p in flow_of(run).items())
    half = train(configure(kind, tmp_path / "half", "--offline-steps", "3", *from_source))
    train(load(["--resume", str(half), "--offline-steps", "6"]))
    assert_same_run(run, half)


def test_an_unfrozen_flow_goes_on_learning(source, configure, tmp_path, kind):
    same = {"state": "identity", "pixels": "impala_debug"}[kind]  # the source's, by its own name
    flags = ("--agent.bc-flow-from", str(source), "--encoder.name", same)
    run = train(configure(kind, tmp_path / "run", *flags))
    wanted = flow_of(source)
    assert any(not torch.equal(p, wanted[n]) for n, p in flow_of(run).items())


@pytest.mark.parametrize("kind", ["state"], indirect=True)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--agent.hidden-dims", "8", "9"), r"networks of \[8, 12\].*\[8, 9\].*hidden-dims"),
        (("--agent.bc-flow-from", "nowhere"), "no run in nowhere"),
    ],
)
def test_a_flow_that_does_not_fit_is_refused(source, configure, tmp_path, kind, flags, words):
    flags = ("--agent.bc-flow-from", str(source), *flags)
    with pytest.raises(UserError, match=words):
        train(configure(kind, tmp_path / "run", *flags))


@pytest.mark.parametrize("kind", ["state"], indirect=True)
def test_a_run_without_a_flow_is_refused(configure, tmp_path, kind):
    source = train(configure(kind, tmp_path / "source", "--algo", "bc"))
    with pytest.raises(UserError, match=r"run of bc, which has no flow"):
        train(configure(kind, tmp_path / "run", "--agent.bc-flow-from", str(source)))


@pytest.mark.parametrize("kind", ["state"], indirect=True)
def test_freezing_a_flow_of_no_run_is_refused(configure, tmp_path, kind):
    with pytest.raises(UserError, match=r"random.*--agent\.bc-flow-from"):
        train(configure(kind, tmp_path / "run", "--agent.freeze-bc-flow"))
