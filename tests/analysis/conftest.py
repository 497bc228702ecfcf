"""A sample of pixels without a store, agents that fit it, and the run folder of a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deflow_vision.analysis.encoders import Subject
from deflow_vision.analysis.frames import Sample
from deflow_vision.config import load, to_yaml
from deflow_vision.datasets.store import open_store
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.training.logger import RunLogger
from deflow_vision.training.video import write_video
from tests.agents.conftest import SPECS, make_agent
from tests.training.conftest import write_task_store

STEPS = (10, 20, 30)
METRICS = {
    "train/critic/loss": 2.0,
    "train/flow/loss": 1.5,
    "train/actor/divergence": 0.002,
    "train/alpha/value": 20.0,
    "train/critic/q_mean": -90.0,
    "train/critic/q_min": -150.0,
    "train/critic/q_max": -10.0,
    "train/odd/metric": 7.0,
    "time/step_seconds": 0.02,
    "time/data_wait": 0.01,
}
FILM_SECONDS = 2


@pytest.fixture
def pixels():
    """60 states of 15 episodes with a light spot, whose place and brightness are the targets."""
    rng = np.random.default_rng(0)
    rows, columns, episodes = rng.integers(0, 14, 60), rng.integers(0, 16, 60), np.arange(60) // 4
    observations = rng.integers(0, 20, (60, *SPECS["pixels"].observation_shape), dtype=np.uint8)
    for observation, row, column in zip(observations, rows, columns, strict=True):
        observation[row : row + 3, column : column + 3] += 200
    places = np.stack([rows, columns, 0 * rows], 1).astype(np.float32)
    return Sample(
        observations=observations,
        actions=rng.uniform(-1, 1, (60, 3)).astype(np.float32),
        episodes=episodes,
        times=np.arange(60) % 4,
        held_out=episodes >= 10,
        targets={"effector": places, "gripper": rng.random((60, 1), np.float32)},
        why_no_targets="",
        frame_stack=2,
    )


@pytest.fixture
def subject():
    def make(algo="deflow", sharing="shared", policy=None, updates=7, **changes):
        agent = make_agent("pixels", sharing, algo, **changes)
        config = EncoderConfig(name="impala_debug", sharing=sharing)
        return Subject(policy or algo, updates, agent, config)

    return make


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory) -> Path:
    """Offline to online: 20 and 10 updates, evaluated three times, with a video of the last."""
    folder = tmp_path_factory.mktemp("report")
    store = open_store(write_task_store(folder / "data.zarr", "state"))
    run_dir = folder / "run"
    argv = [
        *("--task", "cube-single-play-task1", "--data.path", str(folder / "data.zarr")),
        *("--offline-steps", "20", "--online-steps", "10", "--agent.target-divergence", "0.005"),
    ]
    with RunLogger(run_dir) as logger:
        for step in STEPS:
            logger.log(step, METRICS | {"online/success": step == 30} if step > 20 else METRICS)
            logger.log(step, {"val/critic/loss": 3.0, "eval/success": 0.5, "eval/length": 9.0})
            logger.log_episodes(
                [
                    {
                        **{"step": step, "episode": i, "success": i < 2, "return": -5.0 * i},
                        **{"length": 9, "capped": False},
                    }
                    for i in range(4)
                ]
            )
    (run_dir / "config.yaml").write_text(to_yaml(load([*argv, "--run-dir", str(run_dir)])))
    record = {
        "started": "2026-01-01T00:00:00+00:00",
        "command": ["scripts/train.py", *argv],
        "versions": {"torch": "9.9.9"},
        "git_commit": "0123456789abcdef",
        "machine": {"processor": "an abacus", "gpus": []},
        "dataset": {
            "path": str(folder / "data.zarr"),
            "digests": store.attributes["digests"],
            "versions": {"mujoco": "8.8.8"},
            "render_profile": None,
        },
    }
    (run_dir / "environment.json").write_text(json.dumps(record))
    frames = np.random.default_rng(0).integers(0, 256, (20 * FILM_SECONDS, 64, 64, 3), np.uint8)
    write_video(run_dir / "videos" / "step_30_episode_0.mp4", frames, fps=20)
    return run_dir


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))
