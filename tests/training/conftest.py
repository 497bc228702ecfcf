"""Runs of a few steps with tiny networks on tiny stores of the real tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deflow_vision.config import load
from deflow_vision.datasets.store import StoreWriter
from scripts.example_own_data import record

TASKS = {"state": "cube-single-play-task1", "pixels": "visual-cube-single-play-task1"}
OWN = ("--env", "scripts.example_own_data:make", "--task", "reach")
EVALUATED = ("--eval.episodes", "2", "--eval.num-envs", "1", "--eval.videos", "0")


def write_task_store(
    path: Path, kind: str, lengths=(14, 9, 11), env_id=None, chunk=None, render_profile="official"
) -> Path:
    """A store that passes for cube-single-play: random numbers, right shapes."""
    rng = np.random.default_rng(0)
    prefix = "visual-" if kind == "pixels" else ""
    shape = (16, 16, 3) if kind == "pixels" else (28,)
    with StoreWriter(
        path,
        source="test",
        env_id=env_id or f"{prefix}cube-single-play-v0",
        seeds={"train": 0},
        observation_shape=shape,
        observation_dtype="uint8" if kind == "pixels" else "float32",
        action_dim=5,
        render_profile=render_profile if kind == "pixels" else None,
        goals=["task1"],
        chunk=chunk,
    ) as writer:
        for split, split_lengths in (("train", lengths), ("val", (8,))):
            for length in split_lengths:
                if kind == "pixels":
                    observations = rng.integers(0, 256, (length, *shape), dtype=np.uint8)
                else:
                    observations = rng.normal(size=(length, *shape)).astype(np.float32)
                actions = rng.uniform(-1, 1, (length - 1, 5)).astype(np.float32)
                goals = {"task1": (-np.ones(length), rng.random(length) > 0.2)}
                writer.append_episode(split, observations, actions, goals)
    return path


@pytest.fixture(scope="session")
def reach(tmp_path_factory):
    """Episodes of the example of own data."""
    path = tmp_path_factory.mktemp("data") / "reach.zarr"
    record(path, episodes=12)
    return path


@pytest.fixture(scope="session")
def stores(tmp_path_factory, reach):
    folder = tmp_path_factory.mktemp("stores")
    stores = {kind: write_task_store(folder / f"{kind}.zarr", kind) for kind in TASKS}
    return stores | {"own": reach}


@pytest.fixture(params=["state", "pixels"])
def kind(request):
    return request.param


def few_steps(flags: Sequence[str]) -> tuple[str, ...]:
    """Of DeFlow's flow, which takes most of a tiny update's time; not every algorithm has one."""
    return () if "--algo" in flags else ("--agent.flow-steps", "3")


@pytest.fixture
def arguments(stores):
    """The command line of a tiny run; later flags win. Only the kind "own" is evaluated."""

    def make(kind: str, run_dir: Path, *flags: str) -> list[str]:
        task = OWN if kind == "own" else ("--task", TASKS[kind])
        encoder = ["--encoder.name", "impala_debug"] if kind == "pixels" else []
        evaluated = EVALUATED if kind == "own" else ("--eval.episodes", "0")
        return [
            *(*task, "--data.path", str(stores[kind]), *encoder, *evaluated),
            *("--agent.hidden-dims", "8", "12", "--batch-size", "6", "--offline-steps", "6"),
            *few_steps(flags),
            *("--checkpoint.every", "3", "--checkpoint.keep", "9", "--log.every", "1"),
            *("--eval.every", "3", "--eval.val-batches", "1"),
            *("--num-threads", "1", "--run-dir", str(run_dir), *flags),
        ]

    return make


@pytest.fixture
def configure(arguments):
    return lambda *args: load(arguments(*args))
