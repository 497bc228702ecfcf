"""Training on a converted D4RL file, and evaluation in its environment."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest

from deflow_vision.config import load
from deflow_vision.datasets.convert import convert
from deflow_vision.tasks import resolve_task
from deflow_vision.training.evaluation import normalized_score
from deflow_vision.training.loop import train
from deflow_vision.training.restore import evaluate_run
from deflow_vision.types import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A made pen-human-v1: four demonstrations of ten rows."""
    folder, rng = tmp_path_factory.mktemp("d4rl"), np.random.default_rng(0)
    task = resolve_task("pen-human-v1")
    with h5py.File(folder / "pen-human-v1.hdf5", "w") as file:
        file["observations"] = rng.normal(size=(40, task.state_dim)).cumsum(0).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (40, task.action_dim)).astype(np.float32)
        file["rewards"] = rng.normal(size=40).astype(np.float32)
        file["terminals"] = np.zeros(40, bool)
        file["timeouts"] = np.arange(40) % 10 == 9
    return convert(folder / "pen-human-v1.hdf5", folder / "pen-human-v1.zarr")


@pytest.fixture
def configure_pen(configure, store):
    def make(run_dir, *flags, task="pen-human-v1"):
        where = ("--task", task, "--data.path", str(store))
        return configure("state", run_dir, *where, "--offline-steps", "3", *flags)

    return make


def test_a_converted_file_trains_and_is_scored_in_its_environment(configure_pen, tmp_path, caplog):
    caplog.set_level("INFO", "deflow_vision")
    flags = ("--eval.episodes", "1", "--eval.max-episode-steps", "4", "--eval.videos", "0")
    run = train(configure_pen(tmp_path / "run", *flags))
    rows = pd.read_csv(run / "train.csv")
    assert not any(name.startswith("val/") for name in rows)  # D4RL has no validation split
    last = rows.dropna(subset=["eval/return"]).iloc[-1]
    assert (last["step"], last["eval/length"], last["eval/capped"]) == (3, 4, 1)
    expected = 100 * (last["eval/return"] - 96.262799) / (3076.8331017826877 - 96.262799)
    assert last["eval/normalized_score"] == pytest.approx(expected)
    assert "the environment of pen-human-v1 has D4RL's hand" in caplog.text


def test_an_antmaze_score_is_its_success_in_percent():
    assert normalized_score("antmaze-large-play-v2", 0.25) == {"eval/normalized_score": 25.0}
    assert normalized_score("cube-single-play-singletask-task1-v0", 0.25) == {}


def test_a_store_of_another_d4rl_dataset_is_refused(configure_pen, tmp_path):
    with pytest.raises(UserError, match=r"holds pen-human-v1, .*pen-expert-v1 needs pen-expert-v1"):
        train(configure_pen(tmp_path / "run", task="pen-expert-v1"))
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_and_evaluated_again(configure_pen, tmp_path):
    run = train(configure_pen(tmp_path / "run"))
    train(load(["--resume", str(run), "--offline-steps", "4"]))
    metrics = evaluate_run(run, tmp_path / "again", episodes=1, videos=0, num_envs=1)
    assert metrics["eval/length"] <= 100
    assert metrics["eval/capped"] == 0
    record = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert record["metrics"] == metrics
    assert "eval/normalized_score" in metrics
