"""The dataset card, and the command line that prints it."""

from __future__ import annotations

import io
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
    film_frames,
    goal_facts,
    sheet_frames,
    split_facts,
)
from deflow_vision.datasets.store import StoreError, add_goals, open_store
from deflow_vision.types import UserError
from scripts.data import info

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
        "states": "17.65%",
        "episodes": "66.7%",
        "not last": "2",  # 8 and 9; 6 is the first of two states, so its transition is the last
        "last, mask 1": "2",
    }


def test_masks_are_held_against_the_ends_of_episodes(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store.zarr", lengths=(5, 1, 4))  # one state: no transition
    masks = np.ones(10)
    masks[[1, 3, 4, 5]] = 0  # within, at the last transition, and twice where there is none
    add_goals(path, {"train": {"task2": (masks, masks)}})
    found = goal_facts(open_store(path).train, "task2")
    assert (found["not last"], found["last, mask 1"]) == ("1", "1")


def test_the_card_says_where_the_data_come_from_and_how_large_they_are(path: Path) -> None:
    shown = facts(open_store(path))
    assert shown["source"] == "test"
    assert shown["versions"] == "x 2"
    assert shown["observations"] == "4x6x3 uint8, pixels"
    assert "times smaller" in shown["size"]
    assert shown["compression"] == "zstd level 1, every chunk with a checksum"
    assert shown["frames"] == "render profile unknown"


def test_the_card_of_states_says_whether_frames_of_them_can_be_drawn(tmp_path: Path) -> None:
    path = write_store(tmp_path / "state.zarr", pixels=False, env_id="cube-single-play-v0")
    assert facts(open_store(path))["frames"] == "none; without qvel they cannot be drawn"


def test_equal_data_have_equal_checksums_and_other_data_another(tmp_path: Path) -> None:
    same = [checksum(open_store(write_store(tmp_path / name))) for name in ("a", "b")]
    other = checksum(open_store(write_store(tmp_path / "c", lengths=(6, 2, 8))))
    assert same[0] == same[1] != other


@pytest.mark.parametrize("width", [80, 120])
def test_the_whole_card_prints_and_fits(tmp_path: Path, width: int) -> None:
    path = write_store(tmp_path / "s.zarr", env_id="mine", notes=["Not D4RL's."])
    console = Console(file=io.StringIO(), width=width)
    console.print(card(path))
    text = console.file.getvalue()
    for expected in ("mine", "Note: Not D4RL's.", "task1", "train/observations", "val/tasks"):
        assert expected in text
    assert open_store(path).attributes["digests"]["train/qpos"][:12] in text
    assert "…" not in text


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


def test_a_sheet_shows_runs_of_spread_episodes(tmp_path: Path) -> None:
    path = write_store(tmp_path / "pixels.zarr", lengths=(6, 2, 9, 5))
    stored = frames_of(0, 22, pixels=True)
    expected = stored[[0, 2, 5, 17, 19, 21]]  # half of an odd gap is rounded to even
    assert np.array_equal(sheet_frames(path, episodes=2, pictures=3), expected)


def test_a_film_is_the_first_episode_thinned_where_it_is_long(tmp_path: Path) -> None:
    path = write_store(tmp_path / "pixels.zarr", lengths=(13, 2))
    stored = frames_of(0, 13, pixels=True)
    assert np.array_equal(film_frames(path), stored)
    assert np.array_equal(film_frames(path, at_most=4), stored[::4])


def test_states_have_no_frames_to_show_and_are_told_why(tmp_path: Path) -> None:
    path = write_store(tmp_path / "state.zarr", pixels=False, env_id="cube-single-play-v0")
    with pytest.raises(UserError, match=r"no frames to show: without qvel they cannot be drawn"):
        sheet_frames(path)


def test_info_writes_a_sheet_and_a_film(path: Path, tmp_path: Path) -> None:
    files = [tmp_path / "sheet.png", tmp_path / "film.mp4"]
    info(path, *files)
    assert all(file.stat().st_size > 0 for file in files)
    with pytest.raises(UserError, match=r"film\.mp4: name a \.png file"):
        info(path, sheet=files[1])
