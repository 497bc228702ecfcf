"""Losses and gradients that are not finite, and numbers that run away."""

from __future__ import annotations

import json

import pytest
import torch

from deflow_vision.agents.deflow import DeFlow, DeFlowConfig
from deflow_vision.config import load
from deflow_vision.training import checkpoint
from deflow_vision.training.loop import train
from deflow_vision.training.restore import load_policy
from deflow_vision.training.watch import DivergedError, Runaway, read_kept
from deflow_vision.types import Spec
from tests.training.test_loop import assert_same_run, weights

BAD = 4
"""Updates before the one that goes wrong."""


@pytest.fixture
def explode(monkeypatch):
    """Make the update after BAD others go wrong, in its loss or in its gradient alone."""

    def make(what):
        forward, count = DeFlow.forward, iter(range(100))

        def broken(self, batch, noises, stage=None):
            losses, metrics = forward(self, batch, noises, stage)
            if self.training and torch.is_grad_enabled() and next(count) == BAD:
                if what == "loss":
                    losses["flow/loss"] = losses["flow/loss"] * float("inf")
                else:  # the square root has no slope at 0
                    losses["critic/loss"] = losses["critic/loss"] + (0 * self.log_alpha).sqrt()
            return losses, metrics

        monkeypatch.setattr(DeFlow, "forward", broken)

    return make


@pytest.mark.parametrize(
    ("what", "terms"),
    [
        ("loss", ["flow/loss", "the gradient of bc_flow"]),
        ("gradient", ["the gradient of log_alpha"]),
    ],
)
def test_what_is_not_finite_ends_the_run_with_step_term_batch_and_last_checkpoint(
    what, terms, configure, explode, tmp_path
):
    run = tmp_path / "run"
    explode(what)
    with pytest.raises(DivergedError, match=rf"update {BAD}: .*{terms[-1]}.*step_3, is sound"):
        train(configure("state", run, "--log.every", "6"))
    folder = run / "diverged" / f"step_{BAD}"
    assert json.loads((folder / "report.json").read_text()) == {"step": BAD, "not_finite": terms}
    assert [c.step for c in checkpoint.checkpoints(run)] == [3]


def test_the_weights_that_are_kept_are_those_before_the_update_and_the_batch_its_own(
    configure, explode, tmp_path
):
    before = train(configure("state", tmp_path / "before", "--offline-steps", str(BAD)))
    after = train(configure("state", tmp_path / "after", "--offline-steps", str(BAD + 1)))
    explode("loss")
    with pytest.raises(DivergedError):
        train(configure("state", tmp_path / "run"))
    agent = load_policy(tmp_path / "run")[0]
    batch, noises = read_kept(tmp_path / "run" / "diverged" / f"step_{BAD}", agent)
    expected = weights(before, BAD)
    for name, value in agent.state_dict().items():
        assert torch.equal(value, expected[f"agent:{name}"]), name
    losses, _ = agent.eval()(batch, noises, agent.stage(BAD))
    row = (after / "train.csv").read_text().splitlines()
    logged = dict(zip(row[0].split(","), row[-2].split(","), strict=True))
    assert logged["step"] == str(BAD + 1)
    assert float(logged["train/critic/loss"]) == pytest.approx(losses["critic/loss"].item())


def test_a_run_that_stopped_goes_on_from_its_checkpoint(configure, explode, monkeypatch, tmp_path):
    whole = train(configure("state", tmp_path / "whole"))
    with monkeypatch.context() as patch:
        explode("loss")
        with pytest.raises(DivergedError):
            train(configure("state", tmp_path / "run"))
        patch.undo()
    monkeypatch.undo()
    train(load(["--resume", str(tmp_path / "run")]))
    assert_same_run(whole, tmp_path / "run")


def test_q_beyond_any_return_and_a_great_multiplier_are_warned_of_once_a_power_of_ten(caplog):
    runaway = Runaway(Spec((3,), "float32", 2, (-1.0, 0.0)), DeFlowConfig(discount=0.99))
    for step, q in enumerate((-99.0, 999.0, -1001.0, 5000.0, -20_000.0)):
        runaway(step, {"critic/q_mean": q, "alpha/value": 1e5})
    assert [record.args[:3] for record in caplog.records] == [
        ("critic/q_mean", -1001.0, "2"),
        ("critic/q_mean", -20_000.0, "4"),
    ]
    runaway(9, {"alpha/value": 2e6})
    assert "alpha/value is 2e+06 after 9 updates" in caplog.text


def test_a_method_without_q_and_data_without_rewards_have_no_bound(caplog):
    runaway = Runaway(Spec((3,), "float32", 2, (0.0, 0.0)), DeFlowConfig())
    runaway(1, {"critic/q_mean": 1e9})
    Runaway(Spec((3,), "float32", 2, (-1.0, 0.0)), object())(1, {"critic/q_mean": 1e9})
    assert not caplog.records
