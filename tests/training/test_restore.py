from __future__ import annotations

import pytest
import torch

from deflow_vision.analysis.summary import summarise
from deflow_vision.training.loop import train
from deflow_vision.training.restore import load_policy
from deflow_vision.types import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture
def trained(run, configure):
    if not run.exists():
        train(configure("state", run))
    return run


def test_a_policy_acts_without_its_dataset(trained):
    agent, config, step = load_policy(trained)
    assert (step, config.task) == (6, "cube-single-play-task1")
    assert agent.act(torch.zeros(2, 28)).shape == (2, 5)


def test_an_earlier_checkpoint_can_be_asked_for(trained):
    early, late = load_policy(trained, step=3), load_policy(trained, step=6)
    assert early[2] == 3
    assert not torch.equal(early[0].critic.mlp.weights[0], late[0].critic.mlp.weights[0])


def test_a_missing_checkpoint_is_refused_with_those_that_exist(trained):
    with pytest.raises(UserError, match=r"no checkpoint at step 5.*3, 6"):
        load_policy(trained, step=5)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        load_policy(tmp_path)


def test_the_summary_of_a_short_run_says_so_and_names_the_full_one(trained):
    text = summarise(trained, published_steps=1_000_000)
    assert "6 of the 1,000,000 updates" in text
    assert "accelerate launch scripts/train.py --task cube-single-play-task1" in text
    assert "published" not in summarise(trained, published_steps=6)


def test_the_summary_gives_success_at_both_ends(trained):
    rows = "step,episode,success,length,capped\n0,0,0,200,1\n0,1,0,200,1\n6,0,1,90,1\n6,1,0,200,1\n"
    (trained / "episodes.csv").write_text(rows)
    text = summarise(trained, published_steps=6)
    assert "after 0 updates: 0% of 2 episodes, cut at 200 steps" in text
    assert "after 6 updates: 50% of 2 episodes" in text
