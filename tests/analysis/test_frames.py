"""Samples of stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deflow_vision.analysis import frames
from deflow_vision.analysis.frames import action_names, batches, draw_sample
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import open_store
from deflow_vision.types import UserError
from tests.datasets.conftest import frames_of, write_store

SAMPLE = Path(__file__).parents[2] / "data" / "samples" / "visual-cube-double-play-v0.zarr"


@pytest.fixture
def store(tmp_path):
    return open_store(write_store(tmp_path / "store.zarr", (6, 2, 9), val_lengths=(4, 5)))


def test_a_sample_has_training_states_then_held_out_ones_of_the_validation_split(store):
    sample = draw_sample(store, 15)
    assert len(sample) == 15
    assert sample.held_out.tolist() == [False] * 12 + [True] * 3
    assert set(sample.episodes[:12]) == {0, 1, 2}
    assert set(sample.episodes[12:]) <= {-1, -2}
    assert sample.describe() == (
        f"12 states of 3 training episodes, 3 of {len(set(sample.episodes[12:]))} held-out episodes"
    )


def test_every_row_is_of_one_state(store):
    sample = draw_sample(store, 15)
    starts = {0: 0, 1: 6, 2: 8, -1: 0, -2: 4}
    numbers = np.array([starts[e] for e in sample.episodes]) + sample.times
    np.testing.assert_allclose(sample.actions[:, 0], numbers / 1000, atol=1e-6)
    known = np.concatenate([frames_of(number, 1, pixels=True) for number in numbers])
    np.testing.assert_array_equal(sample.observations, known)
    np.testing.assert_array_equal(sample.pictures, known)
    assert len(set(zip(sample.episodes, sample.times, strict=True))) == 15  # none twice


def test_stacks_are_those_of_training_and_of_the_same_states(store):
    single, stacked = draw_sample(store, 15, seed=3), draw_sample(store, 15, frame_stack=3, seed=3)
    assert stacked.observations.shape == (15, 4, 6, 9)
    np.testing.assert_array_equal(stacked.pictures, single.observations)
    np.testing.assert_array_equal(stacked.times, single.times)
    first = stacked.observations[stacked.times == 0]
    assert len(first)
    np.testing.assert_array_equal(first[..., :3], first[..., 6:])  # the first frame repeated
    late = np.flatnonzero(stacked.times > 1)
    expected = (stacked.pictures[late].astype(int) - 14) % 251  # two states earlier
    np.testing.assert_array_equal(stacked.observations[late][..., :3], expected)


def test_states_are_stacked_along_their_only_axis(tmp_path):
    store = open_store(write_store(tmp_path / "store.zarr", (20, 20), pixels=False))
    sample = draw_sample(store, 20, frame_stack=2)
    assert sample.observations.shape == (19, 10)  # of 4 validation states, 3 start a transition
    assert not sample.pixels


def test_the_seed_chooses_the_states(store):
    one, same, other = (draw_sample(store, 10, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.times, same.times)
    assert (one.times != other.times).any() or (one.episodes != other.episodes).any()


def test_without_a_validation_split_whole_training_episodes_are_held_out(tmp_path):
    path = write_store(tmp_path / "store.zarr", (9,) * 10, val_lengths=())
    sample = draw_sample(open_store(path), 60)
    out, kept = (set(sample.episodes[mask]) for mask in (sample.held_out, ~sample.held_out))
    assert len(out) == 2
    assert not out & kept


@pytest.mark.parametrize(
    ("lengths", "count", "message"), [((9,), 10, "single episode"), ((9, 9), 9, "at least 10")]
)
def test_what_cannot_be_split_is_refused(tmp_path, lengths, count, message):
    path = write_store(tmp_path / "store.zarr", lengths, val_lengths=())
    with pytest.raises(UserError, match=message):
        draw_sample(open_store(path), count)


def test_a_dataset_of_no_arm_says_why_it_has_no_targets(store):
    sample = draw_sample(store, 15)
    assert not sample.targets
    assert sample.why_no_targets == "visual-test-v0 is no dataset of OGBench's"


def test_the_targets_are_those_of_the_sampled_states(monkeypatch):
    asked = {}

    def read(function, name, qpos, variables):
        asked.update(name=name, qpos=qpos)
        return {"x": qpos[:, :1]}

    monkeypatch.setattr(frames, "run_in_worker", read)
    store = open_store(SAMPLE)
    sample = draw_sample(store, 40)
    assert asked["name"] == "cube-double"
    train, val = (read_all(split.side["qpos"]) for split in (store.train, store.val))
    rows = zip(sample.episodes, sample.times, strict=True)
    known = [val[time] if number < 0 else train[1001 * number + time] for number, time in rows]
    np.testing.assert_array_equal(asked["qpos"], known)
    assert sample.why_no_targets == ""


def test_the_actions_of_an_arm_have_names(pixels):
    assert action_names(pixels) == ()  # of three dimensions
    arm = dataclasses.replace(pixels, actions=np.zeros((60, 5), np.float32))
    assert action_names(arm) == ("x", "y", "z", "yaw", "gripper")
    assert action_names(dataclasses.replace(arm, targets={})) == ()


def test_batches_cover_all_rows_once():
    assert [list(range(7))[part] for part in batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
