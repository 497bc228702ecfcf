"""Agents of several stages, and optimizer groups with a clip or a schedule, in the loop."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from deflow_vision.agents.rebrac import ReBRAC
from deflow_vision.config import load
from deflow_vision.training.devices import make_accelerator
from deflow_vision.training.loop import train
from tests.training.test_loop import assert_same_run, rows, weights

REBRAC = ("--algo", "rebrac")


@pytest.mark.parametrize("residency", ["ram", "stream"])
def test_a_two_stage_run_resumes_bit_for_bit(kind, residency, configure, tmp_path):
    flags = (*REBRAC, "--data.residency", residency)
    whole = train(configure(kind, tmp_path / "whole", *flags))
    half = train(configure(kind, tmp_path / "half", "--offline-steps", "3", *flags))
    train(load(["--resume", str(half), "--offline-steps", "6"]))
    assert_same_run(whole, half)


def test_the_optimizer_skips_what_a_stage_does_not_train(configure, tmp_path):
    run = train(configure("state", tmp_path / "run", *REBRAC, "--checkpoint.every", "1"))
    before, after = weights(run, 1), weights(run, 2)  # the update between trains the critic alone
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("agent:critic.") for name in moved)
    assert {name.split(".")[0].split("/")[-1] for name in moved} == {"agent:critic", "critic"}
    assert weights(run)["optimizer:step/actor.mlp.out.weight"] == 3
    assert weights(run)["optimizer:step/critic.mlp.weights.0"] == 6


def test_a_row_has_the_values_of_every_stage_since_the_row_before(configure, tmp_path):
    often = rows(train(configure("state", tmp_path / "often", *REBRAC)))
    flags = ("--log.every", "2", "--checkpoint.every", "0")
    run = train(configure("state", tmp_path / "run", *REBRAC, *flags))
    column = "train/actor/penalty"
    assert list(often.loc[often[column].notna(), "step"]) == [1, 3, 5]
    pair = rows(run).dropna(subset=["train/critic/loss"])
    assert list(pair["step"]) == [2, 4, 6]
    often = often.dropna(subset=["train/critic/loss"]).set_index("step")
    assert list(pair[column]) == list(often.loc[[1, 3, 5], column])
    assert list(pair["train/critic/loss"]) == list(often.loc[[2, 4, 6], "train/critic/loss"])


def test_validation_is_of_the_stage_of_its_step(configure, tmp_path):
    table = pd.read_csv(train(configure("state", tmp_path / "run", *REBRAC)) / "train.csv")
    assert list(table.loc[table["val/critic/loss"].notna(), "step"]) == [0, 3, 6]
    assert list(table.loc[table["val/actor/penalty"].notna(), "step"]) == [0, 6]


@pytest.mark.parametrize(
    ("flags", "partial"),
    [((), False), (REBRAC, True), (("--encoder.gradients-from", "flow"), True)],
)
def test_processes_wait_for_no_gradient_that_may_not_come(configure, tmp_path, flags, partial):
    accelerator = make_accelerator(configure("pixels", tmp_path / "run", *flags))
    assert accelerator.ddp_handler.find_unused_parameters == partial


class Watched:
    """What the optimizer held at each step."""

    def __init__(self, monkeypatch):
        self.rates, self.norms = [], []
        step = torch.optim.AdamW.step

        def watch(optimizer, *args, **kwargs):
            groups = optimizer.param_groups
            self.rates.append([group["lr"] for group in groups])
            gradients = [
                [p.grad for p in group["params"] if p.grad is not None] for group in groups
            ]
            self.norms.append([torch.nn.utils.get_total_norm(g).item() for g in gradients])
            return step(optimizer, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", watch)


def split(monkeypatch, **critic):
    """Put ReBRAC's critic in an optimizer group of its own."""

    def groups(agent):
        learning = {
            name: [p for n, p in agent.named_parameters() if p.requires_grad and n.startswith(name)]
            for name in ("critic", "actor")
        }
        common = {"lr": 1e-2, "weight_decay": 0.0}
        return [
            {"params": learning["critic"], **common, **critic},
            {"params": learning["actor"], **common},
        ]

    monkeypatch.setattr(ReBRAC, "parameter_groups", groups)


def test_a_groups_clip_bounds_its_gradient_and_no_other(configure, tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    split(monkeypatch)
    train(configure("state", tmp_path / "free", *REBRAC, "--offline-steps", "1"))
    split(monkeypatch, clip=0.01)
    train(configure("state", tmp_path / "clipped", *REBRAC, "--offline-steps", "1"))
    (critic, actor), (clipped, same) = watched.norms
    assert critic > 0.02
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert actor > 0.01
    assert same == actor


def test_a_groups_schedule_sets_its_rate_by_step_and_no_other(configure, tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    split(monkeypatch, schedule=lambda step: 1 / (1 + step))
    train(configure("state", tmp_path / "run", *REBRAC))
    critic, actor = zip(*watched.rates, strict=True)
    assert critic == pytest.approx([1e-2 / k for k in range(1, 7)])
    assert actor == (1e-2,) * 6


def test_a_rate_of_zero_keeps_the_weights_and_a_schedule_resumes(configure, tmp_path, monkeypatch):
    split(monkeypatch, schedule=lambda step: float(step < 3), clip=0.5)
    whole = train(configure("state", tmp_path / "whole", *REBRAC))
    ours, later = weights(whole, 3), weights(whole, 6)
    critic = [name for name in ours if name.startswith("agent:critic.")]
    assert all(torch.equal(ours[name], later[name]) for name in critic)
    actor = [name for name in ours if name.startswith("agent:actor.")]
    assert not any(torch.equal(ours[name], later[name]) for name in actor)
    half = train(configure("state", tmp_path / "half", *REBRAC, "--offline-steps", "3"))
    train(load(["--resume", str(half), "--offline-steps", "6"]))
    assert_same_run(whole, half)
