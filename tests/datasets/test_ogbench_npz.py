from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import zipfile

import numpy as np
import pytest

from deflow_vision.datasets import ogbench_npz
from deflow_vision.datasets.convert import convert, download_store
from deflow_vision.datasets.ogbench_npz import Archive
from deflow_vision.datasets.relabel import Goal
from deflow_vision.datasets.schema import StoreError, read_all
from deflow_vision.datasets.store import StoreWriter, open_store, verify

LENGTHS = {"train": (5, 3, 8), "val": (4,)}
STATE_DIM, ACTION_DIM, QPOS_DIM = 37, 5, 28


@pytest.fixture(autouse=True)
def goals(monkeypatch):
    """Two cubes at the origin and at x = 1, instead of ogbench's goals, which need a worker."""
    found = {"task1": Goal(cubes=np.zeros((2, 3))), "task2": Goal(cubes=np.eye(3)[[0, 0]])}
    monkeypatch.setattr("deflow_vision.datasets.ogbench_npz.read_goals", lambda name: found)


def arrays_of(split: str, *, pixels: bool) -> dict[str, np.ndarray]:
    """An OGBench file's arrays: all states, and terminals at the last of each episode."""
    rng = np.random.default_rng(len(split))
    count = sum(LENGTHS[split])
    terminals = np.zeros(count, bool)
    terminals[np.cumsum(LENGTHS[split]) - 1] = True
    shape = (count, 64, 64, 3) if pixels else (count, STATE_DIM)
    draw = rng.integers(0, 256, shape) if pixels else rng.normal(size=shape)
    return {
        "observations": draw.astype(np.uint8 if pixels else np.float32),
        "actions": rng.uniform(-1, 1, (count, ACTION_DIM)).astype(np.float32),
        "terminals": terminals,
        "qpos": (rng.integers(0, 2, (count, QPOS_DIM)) * 0.5).astype(np.float32),
        "qvel": rng.normal(size=(count, 26)).astype(np.float32),
        "button_states": rng.integers(0, 2, (count, 4)),
    }


def write_files(folder, *, pixels=False, save=np.savez_compressed, **changes):
    name = f"{'visual-' if pixels else ''}cube-double-play-v0"
    for split, ending in (("train", ""), ("val", "-val")):
        save(folder / f"{name}{ending}.npz", **arrays_of(split, pixels=pixels) | changes)
    return folder / f"{name}.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("pixels", [True, False])
def test_every_state_of_the_file_is_in_the_store(tmp_path, pixels, save):
    convert(write_files(tmp_path, pixels=pixels, save=save), tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    for name, split in store.splits.items():
        assert split is not None
        arrays = arrays_of(name, pixels=pixels)
        np.testing.assert_array_equal(split.episode_ends, np.cumsum(LENGTHS[name]))
        np.testing.assert_array_equal(read_all(split.observations), arrays["observations"])
        for side in ("qpos", "qvel", "button_states"):
            np.testing.assert_array_equal(read_all(split.side[side]), arrays[side])
        arrays["actions"][arrays["terminals"]] = 0  # no transition starts there
        np.testing.assert_array_equal(read_all(split.actions), arrays["actions"])
    assert store.attributes["env_id"] == f"{'visual-' if pixels else ''}cube-double-play-v0"
    assert verify(tmp_path / "a.zarr") == []


def test_rewards_of_every_goal_are_computed(tmp_path):
    convert(write_files(tmp_path), tmp_path / "a.zarr")
    train = open_store(tmp_path / "a.zarr").train
    qpos = arrays_of("train", pixels=False)["qpos"]
    met = np.stack([(qpos[:, start : start + 3] == 0).all(1) for start in (14, 21)], 1)
    np.testing.assert_array_equal(train.rewards("task1"), met.sum(1) - 2)
    np.testing.assert_array_equal(train.masks("task1"), ~met.all(1))
    assert train.goals() == ["task1", "task2"]


def test_store_without_validation_file_has_no_validation_split(tmp_path):
    source = write_files(tmp_path)
    (tmp_path / "cube-double-play-v0-val.npz").unlink()
    convert(source, tmp_path / "a.zarr")
    assert open_store(tmp_path / "a.zarr").val is None


def test_file_of_another_name_needs_the_name_of_its_dataset(tmp_path):
    source = write_files(tmp_path).rename(tmp_path / "mine.npz")
    with pytest.raises(ValueError, match="unknown dataset 'mine'"):
        convert(source, tmp_path / "a.zarr")
    convert(source, tmp_path / "a.zarr", "cube-double-play")
    assert open_store(tmp_path / "a.zarr").attributes["env_id"] == "cube-double-play-v0"


def test_missing_file_is_named_with_the_command_that_brings_it(tmp_path):
    with pytest.raises(StoreError, match=r"does not exist.*download scene-play-v0"):
        convert(tmp_path / "scene-play-v0.npz", tmp_path / "a.zarr")


@pytest.mark.parametrize("keep", [0.3, 0.98])
def test_file_cut_short_is_refused_and_leaves_nothing(tmp_path, keep):
    source = write_files(tmp_path)
    content = source.read_bytes()
    source.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(StoreError, match="damaged"):
        convert(source, tmp_path / "a.zarr")
    assert not list(tmp_path.glob("a.zarr*"))


def test_flipped_byte_in_the_file_is_noticed(tmp_path):
    source = write_files(tmp_path, save=np.savez)
    content = bytearray(source.read_bytes())
    content[600] ^= 1  # among the observations, which come first
    source.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged.*CRC"):
        convert(source, tmp_path / "a.zarr")
    assert not list(tmp_path.glob("a.zarr*"))


def test_array_that_claims_more_than_memory_is_refused(tmp_path):
    source = write_files(tmp_path)
    with zipfile.ZipFile(source) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    claim = b"(9876543210987654,), }"
    claimed = contents["terminals.npy"].replace(b"(16,), }".ljust(len(claim)), claim)
    with zipfile.ZipFile(source, "w") as archive:
        for name, content in (contents | {"terminals.npy": claimed}).items():
            archive.writestr(name, content)
    with pytest.raises(StoreError, match=r"terminals of shape .* would take .* and there are"):
        convert(source, tmp_path / "a.zarr")


def test_more_terminals_than_rows_are_refused_before_they_are_read(tmp_path, monkeypatch):
    source = write_files(tmp_path, terminals=np.zeros(1_000, bool))
    monkeypatch.setattr(Archive, "_lengths", lambda *_: pytest.fail("they were read"))
    with pytest.raises(StoreError, match="16 rows of observations for 1000 terminals"):
        convert(source, tmp_path / "a.zarr")


def test_a_device_in_place_of_the_file_is_refused_and_not_read(tmp_path):
    source = write_files(tmp_path)
    source.unlink()
    source.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="does not exist"):
        convert(source, tmp_path / "a.zarr")


def test_file_of_another_dataset_is_refused(tmp_path):
    source = write_files(tmp_path)
    with pytest.raises(StoreError, match=r"shape \(37,\).*cube-single-play-v0 has \(28,\)"):
        convert(source, tmp_path / "a.zarr", "cube-single-play")


def test_file_that_ends_within_an_episode_is_refused(tmp_path):
    source = write_files(tmp_path, terminals=np.zeros(16, bool))
    with pytest.raises(StoreError, match="does not end an episode"):
        convert(source, tmp_path / "a.zarr")


def assert_refused(source, match):
    with pytest.raises(StoreError, match=match) as refusal:
        convert(source, source.with_name("a.zarr"))
    assert str(source) in str(refusal.value)
    assert not list(source.parent.glob("a.zarr*"))


LAST = np.eye(16)[-1]  # only the last row ends an episode


@pytest.mark.parametrize(
    ("terminals", "match"),
    [
        (LAST * np.nan, "terminals are no vector of 0 and 1"),
        (LAST * 2, "terminals are no vector of 0 and 1"),
        (LAST[:, None], "terminals are no vector of 0 and 1"),
        (LAST.astype(str), "terminals are no vector of 0 and 1"),
        (np.ones(16), "episode 0 has a single state"),
    ],
)
def test_terminals_that_end_no_episodes_are_refused(tmp_path, terminals, match):
    assert_refused(write_files(tmp_path, terminals=terminals), match)


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("observations", np.zeros((16, STATE_DIM), np.int64), "observations of .* dtype int64"),
        ("observations", np.zeros((16, STATE_DIM), bool), "observations of .* dtype bool"),
        ("observations", np.zeros((16, STATE_DIM), complex), "observations of .* dtype complex128"),
        ("actions", np.full((16, ACTION_DIM), "left"), "actions of .* dtype <U4"),
        ("actions", np.zeros(16, np.float32), r"actions of shape \(\).*has \(5,\)"),
        ("qpos", np.zeros(16, np.float32), r"qpos of shape \(\)"),
        ("qpos", np.zeros((16, QPOS_DIM), np.int64), "qpos of .* dtype int64"),
        ("qpos", np.zeros((16, 20), np.float32), "qpos, of 20 numbers, .* do not fit"),
        ("button_states", np.full((16, 4), "on"), "button_states of .* dtype <U2"),
        ("button_states", np.full((16, 4), 0.7), "episode 0: button_states: .* not whole"),
        ("button_states", np.full((16, 4), np.nan), "episode 0: button_states: .* not whole"),
    ],
)
def test_arrays_that_are_not_ogbenchs_are_refused(tmp_path, name, array, match):
    pair = write_files(tmp_path, **{name: array})
    pair.with_name("cube-double-play-v0-val.npz").unlink()  # of fewer rows
    assert_refused(pair, match)


def test_actions_beyond_their_bounds_are_refused(tmp_path):
    source = write_files(tmp_path, actions=np.full((16, ACTION_DIM), 50, np.float32))
    source.with_name("cube-double-play-v0-val.npz").unlink()
    with pytest.raises(StoreError, match=r"episode 0 of train.*actions up to 50 in size"):
        convert(source, tmp_path / "a.zarr")


def moving(arrays):
    """The same rows, but states that wander as a simulator's do."""
    walks = {name: arrays[name].cumsum(0) for name in ("observations", "qpos")}
    return arrays | {name: (walk - walk.mean(0)).astype(np.float32) for name, walk in walks.items()}


@pytest.mark.parametrize("shuffled", [("observations",), ("qpos",), ("observations", "qpos")])
def test_rows_in_another_order_are_refused(tmp_path, monkeypatch, shuffled):
    monkeypatch.setitem(LENGTHS, "train", (150, 120))
    arrays = moving(arrays_of("train", pixels=False))
    order = np.random.default_rng(1).permutation(270)
    source = tmp_path / "cube-double-play-v0.npz"
    np.savez(source, **arrays | {name: arrays[name][order] for name in shuffled})
    assert_refused(source, f"episode 0: {shuffled[-1]} .* not in their order")


def test_rows_shuffled_within_their_episodes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(LENGTHS, "train", (150, 120))
    arrays = moving(arrays_of("train", pixels=False))
    order = np.append(np.random.default_rng(1).permutation(150), np.arange(150, 270))
    source = tmp_path / "cube-double-play-v0.npz"
    np.savez(source, **arrays | {name: arrays[name][order] for name in ("qpos", "observations")})
    assert_refused(source, "episode 0: qpos .* not in their order")


def test_rows_in_their_order_are_taken_though_some_numbers_jump_or_rest(tmp_path, monkeypatch):
    monkeypatch.setitem(LENGTHS, "train", (150, 120))
    arrays = moving(arrays_of("train", pixels=False))
    arrays["qpos"][:, :9] = np.random.default_rng(1).normal(size=(270, 9))
    arrays["qpos"][:, 9:20] = 0.3
    source = tmp_path / "cube-double-play-v0.npz"
    np.savez(source, **arrays)
    convert(source, tmp_path / "a.zarr")
    assert len(open_store(tmp_path / "a.zarr").train.episode_ends) == 2


def test_damaged_download_is_set_aside_downloaded_again_and_converted(tmp_path):
    (tmp_path / "there").mkdir()
    source = write_files(tmp_path / "there", save=np.savez)
    (tmp_path / "downloads").mkdir()
    content = bytearray(source.read_bytes())
    content[600] ^= 1
    (tmp_path / "downloads" / source.name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()  # trusted, as it was the first to be seen
    (tmp_path / "downloads" / f"{source.name}.sha256").write_text(f"{digest}  {source.name}\n")
    there = f"file://{tmp_path}/there/{{file}}"
    download_store("cube-double-play", tmp_path / "a.zarr", addresses=[there])
    assert verify(tmp_path / "a.zarr") == []
    assert [file.name for file in tmp_path.glob("downloads/*.damaged")] == [
        f"{source.name}.damaged"
    ]


def test_damaged_download_is_kept_and_refused_where_there_is_no_network(tmp_path):
    (tmp_path / "downloads").mkdir()
    source = write_files(tmp_path / "downloads", save=np.savez)
    content = bytearray(source.read_bytes())
    content[600] ^= 1
    source.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    source.with_name(f"{source.name}.sha256").write_text(f"{digest}  {source.name}\n")
    with pytest.raises(
        StoreError, match=r"CRC.*`python scripts/data.py download cube-double-play-v0`"
    ):
        download_store("cube-double-play", tmp_path / "a.zarr", offline=True)
    assert source.is_file()


@contextlib.contextmanager
def stopped_after(episodes: int):
    """Ctrl-C before the writer gets more episodes than these."""
    append = StoreWriter.append_episode
    left = itertools.count(episodes, -1)

    def append_or_stop(self, *args, **kwargs):
        if next(left) == 0:
            raise KeyboardInterrupt
        append(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "append_episode", append_or_stop)
        yield


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("episodes", [2, 3])
def test_stopped_conversion_is_gone_on_with(tmp_path, save, episodes):
    source = write_files(tmp_path, save=save)
    convert(source, tmp_path / "whole.zarr")
    with stopped_after(episodes), pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "a.zarr")
    convert(source, tmp_path / "a.zarr")
    whole, gone_on = (open_store(tmp_path / f"{name}.zarr").attributes for name in ("whole", "a"))
    assert gone_on == whole
    assert [path.name for path in tmp_path.glob("a.zarr*")] == ["a.zarr"]


def test_byte_flipped_in_the_part_already_converted_is_noticed(tmp_path):
    source = write_files(tmp_path, save=np.savez)
    with stopped_after(2), pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "a.zarr")
    content, changed = bytearray(source.read_bytes()), source.stat().st_mtime_ns
    content[600] ^= 1
    source.write_bytes(content)
    os.utime(source, ns=(changed, changed))
    with pytest.raises(StoreError, match=r"damaged.*CRC"):
        convert(source, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_conversion_of_a_damaged_file_is_not_gone_on_with_a_sound_one(tmp_path):
    source = write_files(tmp_path, pixels=True, save=np.savez)
    content = bytearray(source.read_bytes())
    damaged = content.copy()
    damaged[600] ^= 1
    source.write_bytes(damaged)
    with stopped_after(1), pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "a.zarr")
    source.write_bytes(content)
    os.utime(source, (1, 1))
    with pytest.raises(StoreError, match=r"another job(.|\n)*plan.train.changed"):
        convert(source, tmp_path / "a.zarr")


def test_conversion_does_not_go_on_with_another_file(tmp_path):
    source = write_files(tmp_path)
    with stopped_after(2), pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "a.zarr")
    changed = {"qvel": np.zeros((16, 26), np.float32)}
    np.savez_compressed(source, **arrays_of("train", pixels=False) | changed)
    with pytest.raises(StoreError, match=r"another job(.|\n)*plan.train.qvel.npy"):
        convert(source, tmp_path / "a.zarr")


def test_file_whose_episodes_do_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ogbench_npz, "_MAX_EPISODE_BYTES", 1000)
    with pytest.raises(StoreError, match=r"its longest episode, 8 states, takes"):
        convert(write_files(tmp_path), tmp_path / "a.zarr")
