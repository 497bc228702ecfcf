from __future__ import annotations

import json

import pytest
import torch

from deflow_vision.analysis.summary import summarise
from deflow_vision.training import run_folder
from deflow_vision.training.loop import train
from deflow_vision.training.restore import _render_profile, load_policy
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


def test_a_folder_that_is_left_half_made_holds_no_run(configure, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "describe_environment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(configure("state", tmp_path / "run"))
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.fixture
def drawn_fast(tmp_path):
    spec = {
        "observation_shape": [64, 64, 3],
        "observation_dtype": "uint8",
        "action_dim": 5,
        "reward_range": [-1, 0],
    }
    dataset = {"path": "gone", "digests": {}, "render_profile": "fast"}
    record = {"started": "", "machine": {}, "versions": {}, "spec": spec, "dataset": dataset}
    (tmp_path / "environment.json").write_text(json.dumps(record))
    return tmp_path


def test_evaluation_draws_as_the_dataset_was_drawn(drawn_fast, caplog):
    assert _render_profile(drawn_fast, None, None) == "fast"
    assert _render_profile(drawn_fast, "fast", None) == "fast"
    assert not caplog.records


def test_drawing_otherwise_than_in_training_must_be_asked_for_and_is_warned_of(drawn_fast, caplog):
    assert _render_profile(drawn_fast, "official", None) == "official"
    assert "sees frames drawn with the render profile 'official'" in caplog.text
    assert "trained on frames drawn with 'fast'" in caplog.text


def test_an_environment_of_ones_own_takes_no_render_profile(drawn_fast):
    with pytest.raises(UserError, match=r"mine:make draws its frames itself.*'draft'"):
        _render_profile(drawn_fast, "draft", "mine:make")


def test_the_summary_of_a_short_run_says_so_and_names_the_full_one(trained):
    text = summarise(trained, published_steps=1_000_000)
    assert "6 of the 1,000,000 updates" in text
    assert "accelerate launch scripts/train.py --task cube-single-play-task1" in text
    assert "published" not in summarise(trained, published_steps=6)


def test_the_summary_gives_success_at_both_ends(trained):
    rows = (
        "step,episode,success,return,length,capped\n"
        "0,0,0,-200,200,1\n0,1,0,-200,200,1\n6,0,1,-90,90,1\n6,1,0,-200,200,1\n"
    )
    (trained / "episodes.csv").write_text(rows)
    text = summarise(trained, published_steps=6)
    assert "after 0 updates: 0% of 2 episodes, cut at 200 steps" in text
    assert "after 6 updates: 50% of 2 episodes" in text
