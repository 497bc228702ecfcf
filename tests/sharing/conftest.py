"""One tiny run on the example of own data, and its policy."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.config import load
from deflow_vision.sharing import Policy
from deflow_vision.training.loop import train
from scripts.example_own_data import record

OWN = ("--env", "scripts.example_own_data:make", "--task", "reach")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """6 updates and two checkpoints, each evaluated on two episodes; frames stacked by three."""
    folder = tmp_path_factory.mktemp("shared")
    record(folder / "reach.zarr", episodes=12)
    flags = ["--data.path", str(folder / "reach.zarr"), "--data.frame-stack", "3"]
    flags += ["--agent.hidden-dims", "8", "12", "--batch-size", "6", "--offline-steps", "6"]
    flags += ["--eval.episodes", "2", "--eval.num-envs", "1", "--eval.videos", "0"]
    flags += ["--eval.every", "3", "--eval.val-batches", "1", "--eval.no-at-start"]
    flags += ["--checkpoint.every", "3", "--num-threads", "1", "--seed", "4"]
    train(load([*OWN, *flags, "--run-dir", str(folder / "run")]))
    return folder / "run"


@pytest.fixture
def policy(run):
    return Policy.from_run(run)


@pytest.fixture
def folder(policy, tmp_path):
    """An export of it."""
    policy.save_pretrained(tmp_path / "reach")
    return tmp_path / "reach"


@pytest.fixture
def draws():
    return lambda seed=0: torch.Generator().manual_seed(seed)
