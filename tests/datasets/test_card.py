"""The dataset card, and the command line that prints it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deflow_vision.datasets.card import (
    card,
    checksum,
    facts,
    first_episode_frames,
    goal_facts,
    split_facts,
)
from deflow_vision.datasets.store import StoreError, add_goals, open_store
from deflow_vision.types import UserError

from .conftest import frames_of, write_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store.zarr", env_id="visual-scene-play-v0", versions={"x": "2"})


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/data.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_card_counts_episodes_and_their_steps(path: Path) -> None:
    assert split_facts(open_store(path).train) == {
        "episodes": "3",
        "states": "17",
        "transitions": "14",
        "steps an episode": "1 to 8, mean 4.7",
    }


def test_success_is_the_share_of_states_and_of_episodes(path: Path) -> None:
    masks = np.ones(17)
    masks[[6, 8, 9]] = 0  # in the second and the third of three episodes
    add_goals(path, {"train": {"task2": (masks - 1, masks)}})
    assert goal_facts(open_store(path).train, "task2") == {
        "rewards": "-1 to 0",
        "mean": "-0.176",
        "success": "17.65%",
        "episodes": "66.7%",
    }


def test_the_card_says_where_the_data_come_from_and_how_large_they_are(path: Path) -> None:
    shown = facts(open_store(path))
    assert shown["dataset"] == "visual-scene-play-v0"
    assert shown["versions"] == "x 2"
    assert shown["observations"] == "(4, 6, 3) uint8"
    assert "times smaller" in shown["observations on disk"]


def test_equal_data_have_equal_checksums_and_other_data_another(tmp_path: Path) -> None:
    same = [checksum(open_store(write_store(tmp_path / name))) for name in ("a", "b")]
    other = checksum(open_store(write_store(tmp_path / "c", lengths=(6, 2, 8))))
    assert same[0] == same[1] != other


def test_the_whole_card_prints(path: Path) -> None:
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(card(path))
    console.file.close()
    text = console.export_text()
    for expected in ("visual-scene-play-v0", "task1", "train/observations", "val"):
        assert expected in text


def test_a_missing_store_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        card(tmp_path / "nowhere.zarr")


def test_the_command_line_verifies_a_store(path: Path) -> None:
    assert run("verify", str(path)).returncode == 0
    chunk = next(file for file in (path / "train/actions/c").rglob("*") if file.is_file())
    chunk.write_bytes(b"\0" + chunk.read_bytes()[1:])
    broken = run("verify", str(path))
    assert broken.returncode == 1
    assert "train/actions" in broken.stdout


def test_the_command_line_explains_itself_without_a_traceback(tmp_path: Path) -> None:
    refused = run("collect", "antmaze-large-navigate", "--path", str(tmp_path / "a.zarr"))
    assert refused.returncode == 2
    assert "data.py download antmaze-large-navigate" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_first_episodes_frames_are_those_of_the_store(tmp_path):
    path = write_store(tmp_path / "pixels.zarr", lengths=(6, 2))
    assert np.array_equal(first_episode_frames(path), frames_of(0, 6, pixels=True))


def test_a_state_store_has_no_frames_to_show(tmp_path):
    path = write_store(tmp_path / "state.zarr", pixels=False)
    with pytest.raises(UserError, match="no frames to show"):
        first_episode_frames(path)
