from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from deflow_vision.datasets.schema import create_array, read_all, read_rows
from deflow_vision.datasets.store import StoreError, StoreWriter, add_goals, open_store, verify

from .conftest import frames_of


def small_writer(path: Path, **changes) -> StoreWriter:
    facts = {
        "source": "test",
        "env_id": "env-v0",
        "seeds": 0,
        "observation_shape": (5,),
        "observation_dtype": "float32",
        "action_dim": 2,
    }
    return StoreWriter(path, **facts | changes)


@pytest.mark.parametrize("pixels", [True, False])
def test_store_gives_back_what_was_written(make_store, pixels):
    store = open_store(make_store((6, 2, 9), pixels=pixels))
    train = store.train
    np.testing.assert_array_equal(read_all(train.observations), frames_of(0, 17, pixels=pixels))
    np.testing.assert_array_equal(train.episode_ends, [6, 8, 17])
    np.testing.assert_array_equal(read_all(train.side["qpos"])[:, 0], np.arange(17))
    np.testing.assert_array_equal(train.rewards("task1"), -(np.arange(17) % 3))
    np.testing.assert_array_equal(train.masks("task1"), np.arange(17) % 5 != 0)
    assert (train.num_states, train.num_transitions, train.pixels) == (17, 14, pixels)
    assert store.val is not None
    assert store.val.num_states == 4


def test_actions_of_last_states_are_zero(make_store):
    actions = read_all(open_store(make_store((6, 2, 9))).train.actions)
    assert not actions[[5, 7, 16]].any()
    np.testing.assert_allclose(actions[15], [0.015, -0.015])


def test_store_records_where_it_comes_from(make_store):
    path = make_store(render_profile="fast", versions={"ogbench": "1.2.2"})
    attributes = open_store(path).attributes
    assert attributes["render_profile"] == "fast"
    assert attributes["versions"] == {"ogbench": "1.2.2"}
    assert attributes["counts"]["train"] == {"states": 17, "episodes": 3, "transitions": 14}


def test_episodes_longer_than_a_chunk_are_kept_whole(make_store):
    observations = open_store(make_store((50, 3, 140), chunk=2)).train.observations
    np.testing.assert_array_equal(read_all(observations), frames_of(0, 193, pixels=True))
    np.testing.assert_array_equal(read_rows(observations, 30, 35), frames_of(30, 5, pixels=True))


def test_a_chunk_holds_64_frames_of_ogbench_and_at_most_4096_rows(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr")
    assert create_array(root, "frames", (64, 64, 3), "uint8").chunks == (64, 64, 64, 3)
    assert create_array(root, "actions", (5,), "float32").chunks == (4096, 5)


def test_chunk_greater_than_a_reader_takes_is_refused_when_it_is_written(tmp_path):
    with pytest.raises(StoreError, match=r"chunks of \(100000, 64, 64, 3\)"):
        create_array(zarr.create_group(tmp_path), "frames", (64, 64, 3), "uint8", 100_000)


def test_store_may_lack_a_validation_split(make_store):
    assert open_store(make_store(val_lengths=())).val is None


def test_whole_store_verifies(make_store):
    assert verify(make_store()) == []


def write_and_fail(writer: StoreWriter) -> None:
    with writer:
        writer.append_episode("train", np.zeros((3, 5), np.float32), np.zeros((2, 2)))
        raise RuntimeError("simulator")


def test_error_while_writing_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="simulator"):
        write_and_fail(small_writer(tmp_path / "a.zarr"))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_named(tmp_path):
    with pytest.raises(StoreError, match="no space is left"), small_writer(tmp_path / "a.zarr"):
        raise OSError(28, "No space left on device")


def test_store_without_episodes_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no training episode"), small_writer(tmp_path / "a.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_existing_store_is_not_overwritten(make_store):
    path = make_store()
    with pytest.raises(StoreError, match="exists"), small_writer(path):
        pass
    assert verify(path) == []


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (np.zeros((3, 4), np.float32), np.zeros((2, 2)), r"rows of shape \(4,\)"),
        (np.zeros((3, 5), np.float32), np.zeros((2, 3)), r"rows of shape \(3,\)"),
        (np.zeros((3, 5), np.float32), np.zeros((1, 2)), "1 actions for 3 states"),
        (np.full((3, 5), np.nan, np.float32), np.zeros((2, 2)), "not finite"),
    ],
)
def test_episode_that_does_not_fit_is_refused(tmp_path, observations, actions, message):
    with pytest.raises(StoreError, match=message), small_writer(tmp_path / "a.zarr") as writer:
        writer.append_episode("train", observations, actions)


def test_float_frames_are_refused_by_a_pixel_store(tmp_path):
    changes = {"observation_shape": (4, 6, 3), "observation_dtype": "uint8"}
    with (
        pytest.raises(StoreError, match="dtype float64"),
        small_writer(tmp_path / "a.zarr", **changes) as writer,
    ):
        writer.append_episode("train", np.zeros((3, 4, 6, 3)), np.zeros((2, 2)))


def test_goal_of_another_length_is_refused(make_store):
    path = make_store()
    with pytest.raises(StoreError, match="for 17 states"):
        add_goals(path, {"train": {"task2": (np.zeros(16), np.ones(16))}})


def test_goals_are_added_to_a_finished_store(make_store):
    path = make_store()
    goals = {"task2": (np.full(17, -1.0), np.ones(17)), "task1": (np.zeros(17), np.zeros(17))}
    add_goals(path, {"train": goals})
    train = open_store(path).train
    assert train.goals() == ["task1", "task2"]
    np.testing.assert_array_equal(train.rewards("task2"), np.full(17, -1))
    np.testing.assert_array_equal(train.masks("task1"), np.zeros(17))
    assert verify(path) == []


def test_missing_store_names_the_path_and_three_ways_to_get_it(tmp_path):
    with pytest.raises(StoreError) as error:
        open_store(tmp_path / "cube-double-play-v0.zarr")
    for text in (str(tmp_path), "collect cube-double-play ", "download cube-", "convert cube-"):
        assert text in str(error.value)


def test_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not a deflow-vision store"):
        open_store(tmp_path)
