"""People's own data and environment: the example as it stands, and what does not fit."""

from __future__ import annotations

import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deflow_vision.analysis.plots import learning_curves
from deflow_vision.analysis.summary import summarise
from deflow_vision.config import load
from deflow_vision.datasets.store import StoreWriter
from deflow_vision.training.loop import train
from deflow_vision.training.restore import evaluate_run
from deflow_vision.types import UserError

EXAMPLE = "scripts.example_own_data:make"
SMALL = ("--encoder.name", "impala_debug", "--eval.episodes", "1")
ROOT = Path(__file__).parents[2]
PIXELS = "tests.envs.own_envs:make_pixels"
TINY = (
    *("--agent.hidden-dims", "8", "--batch-size", "6", "--offline-steps", "2", "--log.every", "1"),
    *("--eval.episodes", "2", "--eval.num-envs", "1", "--eval.val-batches", "1"),
    *("--num-threads", "1"),
)


def run_of(store: Path, run_dir: Path, *flags: str, env: str = EXAMPLE) -> Path:
    where = ("--env", env, "--data.path", str(store), "--run-dir", str(run_dir))
    return train(load([*where, *TINY, *flags]))


def write(path: Path, **changes) -> Path:
    """A store with an episode of random pixels (8, 10, 1), as the environment has them."""
    layout = {"observation_shape": (8, 10, 1), "observation_dtype": "uint8", "action_dim": 2}
    layout |= {"goals": ["default"], "scale": 1.0} | changes
    rng, scale = np.random.default_rng(0), layout.pop("scale")
    with (
        pytest.MonkeyPatch.context() as patch,
        StoreWriter(path, source="test", env_id="mine", seeds=0, **layout) as writer,
    ):
        patch.setattr("deflow_vision.datasets.columns.ACTION_BOUND", np.inf)  # as writers were
        writer.append_episode(
            "train",
            rng.integers(0, 256, (9, *layout["observation_shape"]), dtype=np.uint8),
            scale * rng.uniform(-1, 1, (8, layout["action_dim"])),
            {goal: (np.ones(8), np.ones(8)) for goal in layout["goals"]},
        )
    return path


def test_the_example_trains_resumes_and_is_evaluated_again(reach, tmp_path):
    run = run_of(reach, tmp_path / "run", "--task", "reach", "--eval.max-episode-steps", "4")
    table = pd.read_csv(run / "episodes.csv")
    assert (table["length"].max(), table["capped"].all(), len(table)) == (4, True, 4)
    assert table["success"].isin([0, 1]).all()
    resumed = load(["--resume", str(run), "--offline-steps", "3"])
    assert (resumed.task, resumed.env, resumed.data.frame_stack) == ("reach", EXAMPLE, 1)
    train(resumed)
    metrics = evaluate_run(run, tmp_path / "again", episodes=1, videos=0, num_envs=1)
    assert metrics["eval/capped"] == 0
    assert 4 < metrics["eval/length"] <= 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on pixels of one's own."""
    folder = tmp_path_factory.mktemp("pixels")
    return run_of(write(folder / "mine.zarr"), folder / "run", *SMALL, env=PIXELS)


def test_the_evaluation_script_says_and_writes_down_what_it_did(trained, monkeypatch, caplog):
    log = logging.getLogger("deflow_vision")
    level = log.level
    flags = ("--episodes", "2", "--num-envs", "1", "--seed", "0", "--step", "2")
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--run", str(trained), *flags])
    try:
        runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
    finally:
        log.setLevel(level)
    assert "not checked whether frames are drawn here as in the dataset" in caplog.text
    (folder,) = (trained / "evaluations").iterdir()
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["arguments"] == {
        **{"run": str(trained), "step": 2, "env": PIXELS, "render_profile": "official"},
        **{"seed": 0, "episodes": 2, "videos": 0, "num_envs": 1, "device": "cpu"},
        "acting": {},
    }
    again = pd.read_csv(folder / "episodes.csv")
    assert record["metrics"]["eval/return"] == again["return"].mean()
    assert "torch" in record["versions"]
    before = pd.read_csv(trained / "episodes.csv")
    assert set(before["step"]) == {0, 2}
    assert not set(again["seed"]) & set(before["seed"])


def test_own_pixels_are_stacked_and_filmed_and_need_not_report_success(tmp_path, caplog):
    env = "tests.envs.own_envs:make_quiet_pixels"
    with caplog.at_level("INFO"):
        run = run_of(write(tmp_path / "mine.zarr"), tmp_path / "run", *SMALL, env=env)
    assert "returns and lengths alone" in caplog.text
    assert load(["--resume", str(run)]).data.frame_stack == 3
    assert "eval/success" not in pd.read_csv(run / "train.csv")
    assert (run / "videos" / "step_2_episode_0.mp4").stat().st_size > 0
    assert "Mean return after 2 updates: 7 of 1 episodes" in summarise(run, published_steps=2)
    assert learning_curves(run)[0].stat().st_size > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation_shape": (8, 8, 1)}, r"\(8, 10, 1\) uint8, 2 actions; .*\(8, 8, 1\) uint8"),
        ({"action_dim": 3}, r"2 actions; .*mine\.zarr has .*3 actions"),
        ({"goals": ["task1"]}, "has no rewards for default, only for task1"),
        ({"scale": 40.0}, r"actions up to \d+\.\d+ in size: a store holds them scaled to \[-1, 1"),
    ],
)
def test_a_store_that_does_not_fit_is_refused_before_anything_is_written(changes, words, tmp_path):
    store = write(tmp_path / "mine.zarr", **changes)
    with pytest.raises(UserError, match=words):
        run_of(store, tmp_path / "run", env=PIXELS)
    assert not (tmp_path / "run").exists()


def test_a_missing_store_is_refused_with_the_way_to_write_one(tmp_path):
    with pytest.raises(UserError, match=r"no dataset at .*none\.zarr: .*StoreWriter"):
        run_of(tmp_path / "none.zarr", tmp_path / "run")


def test_a_run_is_not_evaluated_in_an_environment_of_other_spaces(reach, tmp_path):
    run = run_of(reach, tmp_path / "run", "--offline-steps", "1", "--eval.episodes", "0")
    with pytest.raises(UserError, match=r"\(8, 10, 1\) uint8, 2 actions; .*run has .*\(2,\) float"):
        evaluate_run(run, tmp_path / "e", episodes=1, videos=0, num_envs=1, env=PIXELS)


@pytest.mark.slow
def test_the_example_runs_as_a_script(tmp_path):
    flags = ("--offline-steps", "2", "--eval.episodes", "1", "--run-dir", str(tmp_path / "run"))
    subprocess.run(
        [sys.executable, "scripts/example_own_data.py", *flags, "--num-threads", "1"],
        cwd=ROOT,
        env=os.environ | {"DEFLOW_DATA": str(tmp_path)},
        check=True,
        timeout=200,
    )
    assert (tmp_path / "reach.zarr").is_dir()
    episodes = pd.read_csv(tmp_path / "run" / "episodes.csv")
    assert episodes["step"].tolist() == [0, 2]
