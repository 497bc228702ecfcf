"""Minari's datasets into stores: a tiny one, made by Minari itself in a folder of the test's."""

from __future__ import annotations

import warnings

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from minari.data_collector import EpisodeBuffer

from deflow_vision.datasets.minari_dataset import convert_minari
from deflow_vision.datasets.schema import StoreError, read_all
from deflow_vision.datasets.store import open_store, verify

LENGTHS = (5, 1, 3)
PARTS = spaces.Dict(
    {
        "observation": spaces.Box(-9, 9, (3,)),
        "achieved_goal": spaces.Box(-9, 9, (2,)),
        "hand": spaces.Tuple([spaces.Box(-9, 9, (1, 2), np.float64), spaces.Box(-9, 9, ())]),
    }
)
ACTIONS = spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


class Recorded(gymnasium.Env):
    """An environment of these spaces, for its name."""

    observation_space, action_space = PARTS, ACTIONS


gymnasium.register("RecordedTest-v0", f"{__name__}:Recorded", max_episode_steps=7)


def draw(space, count, rng):
    """`count` samples of a space, stacked as Minari stacks them."""
    if isinstance(space, spaces.Dict):
        return {key: draw(part, count, rng) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(draw(part, count, rng) for part in space.spaces)
    if space.dtype.kind in "iu":
        return rng.integers(0, 3, (count, *space.shape), space.dtype)
    low, high = np.maximum(space.low, -9), np.minimum(space.high, 9)
    return rng.uniform(low, high, (count, *space.shape)).astype(space.dtype)


def make_dataset(
    dataset_id="D4RL/antmaze/tiny-v0", space=PARTS, actions=ACTIONS, beyond=1.0, **changes
):
    """A dataset of random episodes, the actions so many times as far from 0 as they are drawn."""
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=draw(space, length + 1, rng),
            actions=beyond * draw(actions, length, rng),
            rewards=list(rng.normal(size=length)),
            terminations=[False] * (length - 1) + [number == 0],
            truncations=[False] * (length - 1) + [number != 0],
            infos={},
            **changes,
        )
        for number, length in enumerate(LENGTHS)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no author is named, and so on
        return minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env="RecordedTest-v0",
            observation_space=space,
            action_space=actions,
            jpeg_encoding=False,
        )


def test_transitions_are_those_of_the_dataset(tmp_path):
    dataset = make_dataset()
    convert_minari(dataset.id, tmp_path / "a.zarr")
    train = open_store(tmp_path / "a.zarr").train
    np.testing.assert_array_equal(train.episode_ends, np.cumsum(np.array(LENGTHS) + 1))
    start = 0
    for episode in dataset:
        rows = slice(start, start + len(episode))
        np.testing.assert_array_equal(train.rewards("default")[rows], np.float32(episode.rewards))
        np.testing.assert_array_equal(train.masks("default")[rows], 1.0 - episode.terminations)
        low, high = ACTIONS.low, ACTIONS.high
        back = low + (read_all(train.actions)[rows] + 1) / 2 * (high - low)
        np.testing.assert_allclose(back, episode.actions, atol=1e-6)
        start += len(episode) + 1
    assert (train.masks("default") == 0).any()
    assert np.abs(read_all(train.actions)).max() <= 1
    assert verify(tmp_path / "a.zarr") == []


def test_observations_are_flattened_as_gymnasiums_wrapper_flattens_them(tmp_path):
    dataset = make_dataset()
    convert_minari(dataset.id, tmp_path / "a.zarr")
    store, wrapper = open_store(tmp_path / "a.zarr"), FlattenObservation(Recorded())
    episode = dataset[2]

    def state(values, at):
        if isinstance(values, dict):
            return {key: state(value, at) for key, value in values.items()}
        if isinstance(values, tuple):
            return tuple(state(value, at) for value in values)
        return values[at]

    expected = [wrapper.observation(state(episode.observations, at)) for at in range(4)]
    np.testing.assert_array_equal(read_all(store.train.observations)[-4:], np.float32(expected))
    assert (
        "achieved_goal (2), hand.0 (2), hand.1 (1), observation (3)" in store.attributes["notes"][0]
    )


def test_actions_beyond_their_bounds_are_clipped_and_the_card_says_so(tmp_path):
    dataset = make_dataset(beyond=1.5)
    convert_minari(dataset.id, tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    actions = read_all(store.train.actions)
    assert (actions.min(), actions.max()) == (-1, 1)
    assert "those beyond its bounds clipped" in " ".join(store.attributes["notes"])


def test_actions_of_narrow_bounds_far_from_0_keep_their_digits(tmp_path):
    dataset = make_dataset(actions=spaces.Box(8, 8 + 1e-5, (1,), np.float64))
    convert_minari(dataset.id, tmp_path / "a.zarr")
    actions = read_all(open_store(tmp_path / "a.zarr").train.actions)
    expected = 2 * (dataset[0].actions - 8) / ((8 + 1e-5) - 8) - 1
    np.testing.assert_allclose(actions[: LENGTHS[0]], expected, atol=1e-6)


def test_the_store_is_named_by_minaris_id_and_says_that_it_is_not_d4rls(tmp_path):
    convert_minari(make_dataset().id, tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    assert store.attributes["env_id"] == "D4RL/antmaze/tiny-v0"
    assert store.val is None
    notes = " ".join(store.attributes["notes"])
    assert "Minari's antmaze is not D4RL's" in notes
    assert "scaled to [-1, 1] from Box([-1.  0.], [1. 4.]" in notes
    assert "Recorded in RecordedTest-v0" in notes
    assert "--env module:factory" in notes


def test_pictures_stay_pictures(tmp_path):
    space = spaces.Box(0, 255, (6, 4, 3), np.uint8)
    dataset = make_dataset("pictures-v0", space, spaces.Box(-1, 1, (2,)))
    convert_minari(dataset.id, tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    np.testing.assert_array_equal(
        read_all(store.train.observations)[: LENGTHS[0] + 1], dataset[0].observations
    )
    assert all("order" not in note and "scaled" not in note for note in store.attributes["notes"])


def assert_refused(tmp_path, dataset_id, match):
    with pytest.raises(StoreError, match=match):
        convert_minari(dataset_id, tmp_path / "a.zarr")
    assert not list(tmp_path.glob("a.zarr*"))


def test_a_dataset_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    make_dataset("here/pen-v0")
    assert_refused(
        tmp_path, "there/pen-v0", r"no dataset 'there/pen-v0'.*has: here/pen-v0.*download"
    )


@pytest.mark.parametrize(
    ("space", "actions", "match"),
    [
        (spaces.Discrete(3), ACTIONS, "observations have as their only part Discrete"),
        (
            spaces.Dict(eye=spaces.Box(0, 255, (4, 4, 3), np.uint8)),
            ACTIONS,
            "observations have eye Box",
        ),
        (PARTS, spaces.Discrete(3), r"actions are Discrete"),
        (PARTS, spaces.Box(-np.inf, np.inf, (2,)), r"actions are Box\(-inf.*bounded"),
        (PARTS, spaces.Box(-3e38, 3e38, (2,)), r"action 0 lies between -3e\+38 and 3e\+38"),
        (PARTS, spaces.Box(-1.7e308, 1.7e308, (2,), np.float64), r"action 0 lies between"),
        (PARTS, spaces.Box(np.float32([-1, 2]), np.float32([1, 2])), r"action 1 .* 2 and 2"),
    ],
)
def test_spaces_that_a_store_cannot_hold_are_refused(tmp_path, space, actions, match):
    make_dataset("other-v0", space, actions)
    assert_refused(tmp_path, "other-v0", match)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rewards", np.full(5, np.nan)), ("actions", np.zeros((4, 2))), ("terminations", None)],
)
def test_a_damaged_episode_is_named_and_leaves_nothing(tmp_path, key, value):
    path = make_dataset().storage.data_path / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        del file["episode_0"][key]
        if value is not None:
            file["episode_0"][key] = value
    assert_refused(tmp_path, "D4RL/antmaze/tiny-v0", "tiny-v0, episode 0 is damaged.*again")


def test_a_file_cut_short_is_refused(tmp_path):
    path = make_dataset().storage.data_path / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_refused(tmp_path, "D4RL/antmaze/tiny-v0", "is damaged")


def test_a_stopped_conversion_goes_on_where_it_was(tmp_path, monkeypatch):
    dataset, scaled = make_dataset(), minari.dataset.minari_dataset.MinariDataset.iterate_episodes
    convert_minari(dataset.id, tmp_path / "whole.zarr")
    asked = []

    def stop(self, indices):
        asked.append(list(indices))
        for number, episode in enumerate(scaled(self, indices)):
            if len(asked) == 1 and number == 1:
                raise KeyboardInterrupt
            yield episode

    monkeypatch.setattr(type(dataset), "iterate_episodes", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_minari(dataset.id, tmp_path / "a.zarr")
    convert_minari(dataset.id, tmp_path / "a.zarr")
    assert asked == [[0, 1, 2], [1, 2]]
    digests = [
        open_store(tmp_path / f"{name}.zarr").attributes["digests"] for name in ("a", "whole")
    ]
    assert digests[0] == digests[1]
