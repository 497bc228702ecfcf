"""Runs that end in the middle of an evaluation, and go on."""

from __future__ import annotations

import pytest

from deflow_vision.config import load
from deflow_vision.training import checkpoint
from deflow_vision.training.evaluation import Evaluator
from deflow_vision.training.loop import train
from tests.training.test_loop import assert_same_run, copy_of_run


def test_an_evaluation_that_fails_loses_no_update_and_comes_again(configure, tmp_path, monkeypatch):
    def fail_at_step_3(self, agent, step):
        if step == 3:
            raise RuntimeError("the simulator crashed")
        return evaluate(self, agent, step)

    whole, run = train(configure("own", tmp_path / "whole")), tmp_path / "run"
    evaluate = Evaluator.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", fail_at_step_3)
        with pytest.raises(RuntimeError, match="crashed"):
            train(configure("own", run))
    assert checkpoint.latest(run).step == 3
    train(load(["--resume", str(run)]))
    assert_same_run(whole, run)


def test_a_run_killed_between_its_episodes_and_their_means_evaluates_once_more(configure, tmp_path):
    whole = train(configure("own", tmp_path / "whole"))
    killed = copy_of_run(whole, tmp_path / "killed")
    lines = (killed / "train.csv").read_text().splitlines(keepends=True)
    (killed / "train.csv").write_text("".join(lines[:-1]))
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed)
