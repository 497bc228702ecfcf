"""D4RL's files into stores, against a loop that does what D4RL's and FQL's code do, row by row."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deflow_vision.datasets import d4rl_hdf5
from deflow_vision.datasets.d4rl_hdf5 import Rows, convert_hdf5, read_through
from deflow_vision.datasets.schema import StoreError, read_all
from deflow_vision.datasets.store import open_store, verify
from deflow_vision.datasets.transitions import Transitions
from deflow_vision.tasks import resolve_task

ANTMAZE, PEN = "antmaze-umaze-v2", "pen-human-v1"


def rows_of(dataset: str, terminals, timeouts, **changes) -> dict[str, np.ndarray]:
    """A file's arrays: states that wander, the rest random. Flags: rows at which they are set."""
    task, rng = resolve_task(dataset), np.random.default_rng(len(timeouts))
    count = changes.pop("count", 40)
    flags = {"terminals": np.zeros(count, bool), "timeouts": np.zeros(count, bool)}
    flags["terminals"][list(terminals)] = True
    flags["timeouts"][list(timeouts)] = True
    return {
        "observations": rng.normal(size=(count, task.state_dim)).cumsum(0).astype(np.float32),
        "actions": rng.uniform(-1, 1, (count, task.action_dim)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "infos/qpos": rng.normal(size=(count, 3)),
        **flags,
    } | changes


def write_file(folder, dataset, rows, **options):
    path = folder / f"{dataset}.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in rows.items():
            if value is not None:
                file.create_dataset(key, data=value, **options)
    return path


def reference(dataset, rows):
    """FQL's transitions of a D4RL file: a list of (s, a, r, mask, s', ends its trajectory)."""
    kept = []
    for i in range(len(rows["rewards"]) - 1):
        if rows["timeouts"][i]:
            continue
        s, a, r = (rows[key][i] for key in ("observations", "actions", "rewards"))
        kept.append((s, a, r, bool(rows["terminals"][i]), rows["observations"][i + 1]))
    transitions = []
    for i, (s, a, r, terminal, after) in enumerate(kept):
        ends = i == len(kept) - 1 or np.linalg.norm(kept[i + 1][0] - after) > 1e-6
        if "antmaze" in dataset:
            r = r - np.float32(1)
        else:
            ends = ends or terminal
        transitions.append((s, a, r, 1.0 - terminal, after, ends))
    return transitions


def stored(path):
    """The same of a store."""
    split = open_store(path).train
    index = Transitions(split.episode_ends, 1)
    states = index.states(np.arange(len(index)))
    frames = read_all(split.observations)[index.frames(states)]
    actions, rewards, masks = (
        read_all(split.actions),
        split.rewards("default"),
        split.masks("default"),
    )
    ends = np.isin(states + 2, split.episode_ends)
    return list(
        zip(
            *(frames[:, 0], actions[states], rewards[states], masks[states], frames[:, 1], ends),
            strict=True,
        )
    )


def assert_same(ours, theirs):
    """Equal in every number and in their order, so equal as multisets too."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for value, expected in zip(mine, other, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.fixture(params=[5, 1 << 15])
def block(request, monkeypatch):
    """Rows that are read at once."""
    monkeypatch.setattr(d4rl_hdf5, "_BLOCK_ROWS", request.param)


FLAGS = {
    "one long episode": ((), ()),
    "timeouts alone": ((), (9, 19, 39)),
    "terminals alone": ((4, 5, 38), ()),
    "both": ((3, 12, 13, 30), (8, 20, 21)),
    "both in one row": ((8, 20), (8, 20, 33)),
    "at every edge": ((0, 4, 5, 39), (1, 9, 10, 38)),
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
@pytest.mark.parametrize("dataset", [ANTMAZE, PEN])
def test_transitions_are_those_of_the_reference(tmp_path, dataset, flags, block):
    rows = rows_of(dataset, *flags)
    convert_hdf5(write_file(tmp_path, dataset, rows), tmp_path / "a.zarr")
    assert_same(stored(tmp_path / "a.zarr"), reference(dataset, rows))
    assert verify(tmp_path / "a.zarr") == []


@settings(max_examples=60, deadline=None)
@given(
    flags=st.lists(
        st.sampled_from(["", "", "", "terminal", "timeout", "both"]), min_size=2, max_size=25
    ),
    block_rows=st.integers(1, 12),
    dataset=st.sampled_from([ANTMAZE, PEN]),
)
def test_no_transition_is_lost_or_invented_whatever_the_flags(
    tmp_path_factory, flags, block_rows, dataset
):
    rows = rows_of(
        dataset,
        [i for i, flag in enumerate(flags) if flag in ("terminal", "both")],
        [i for i, flag in enumerate(flags) if flag in ("timeout", "both")],
        count=len(flags),
    )
    expected = reference(dataset, rows)
    path = write_file(tmp_path_factory.mktemp("any"), dataset, rows)
    with pytest.MonkeyPatch.context() as patch, Rows(path, resolve_task(dataset)) as file:
        patch.setattr(d4rl_hdf5, "_BLOCK_ROWS", block_rows)
        if not expected:
            with pytest.raises(StoreError, match="no row leads to another"):
                file.episodes()
            return
        found = []
        for episode in file.read(file.episodes()):
            rewards, masks = episode.goals["default"]
            ends = np.arange(len(rewards)) == len(rewards) - 1
            states = episode.observations
            found += zip(
                states[:-1], episode.actions, rewards, masks, states[1:], ends, strict=True
            )
    assert_same(found, expected)


def test_antmaze_rewards_are_shifted_and_adroit_rewards_are_raw(tmp_path):
    for dataset, shift in ((ANTMAZE, -1), (PEN, 0)):
        rows = rows_of(dataset, (), (), rewards=np.tile(np.float32([0, 1]), 20))
        convert_hdf5(write_file(tmp_path, dataset, rows), tmp_path / f"{dataset}.zarr")
        rewards = open_store(tmp_path / f"{dataset}.zarr").train.rewards("default")
        assert set(rewards) == {shift, shift + 1}


def test_actions_beyond_their_bounds_are_clipped_as_fql_clips_them(tmp_path):
    rows = rows_of(PEN, (), (), actions=np.full((40, 24), -1.5, np.float32))
    convert_hdf5(write_file(tmp_path, PEN, rows), tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    assert set(read_all(store.train.actions)[:-1].ravel()) == {-1}
    assert "Actions beyond [-1, 1] are clipped" in store.attributes["notes"][-1]


def test_masks_are_zero_at_terminals_and_one_at_timeouts(tmp_path):
    rows = rows_of(PEN, (10,), (20,))
    convert_hdf5(write_file(tmp_path, PEN, rows), tmp_path / "a.zarr")
    train = open_store(tmp_path / "a.zarr").train
    np.testing.assert_array_equal(train.episode_ends, [12, 22, 41])  # row 11 is in both, 0 to 11
    assert np.flatnonzero(train.masks("default") == 0)[0] == 10


def test_an_ant_walks_on_after_its_goal_and_a_hand_does_not(tmp_path):
    for dataset, episodes in ((ANTMAZE, 1), (PEN, 2)):
        rows = rows_of(dataset, (10,), ())
        convert_hdf5(write_file(tmp_path, dataset, rows), tmp_path / f"{dataset}.zarr")
        assert len(open_store(tmp_path / f"{dataset}.zarr").train.episode_ends) == episodes


def test_columns_of_one_and_other_dtypes_are_read_as_d4rl_reads_them(tmp_path):
    rows = rows_of(PEN, (10,), (20,))
    other = rows | {
        "observations": rows["observations"].astype(np.float64),
        "rewards": rows["rewards"][:, None],
        "terminals": rows["terminals"].astype(np.uint8)[:, None],
    }
    source = write_file(tmp_path, PEN, other, compression="gzip", chunks=True)
    convert_hdf5(source, tmp_path / "a.zarr")
    assert_same(stored(tmp_path / "a.zarr"), reference(PEN, rows))


def test_the_store_says_where_it_comes_from_and_what_deviates(tmp_path):
    convert_hdf5(write_file(tmp_path, ANTMAZE, rows_of(ANTMAZE, (), (9,))), tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    assert store.attributes["env_id"] == ANTMAZE
    assert f"{ANTMAZE}.hdf5, SHA-256" in store.attributes["source"]
    assert "rewards are D4RL's -1" in store.attributes["notes"][0]
    assert "MuJoCo 2" in store.attributes["notes"][1]
    assert store.val is None


def test_a_file_of_another_name_needs_the_name_of_its_dataset(tmp_path):
    source = write_file(tmp_path, PEN, rows_of(PEN, (), (9,))).rename(tmp_path / "Pen.hdf5")
    with pytest.raises(ValueError, match="unknown dataset 'Pen'"):
        convert_hdf5(source, tmp_path / "a.zarr")
    convert_hdf5(source, tmp_path / "a.zarr", "pen-human")
    with pytest.raises(StoreError, match=r"cube-single-play-v0 is not one of D4RL's"):
        convert_hdf5(source, tmp_path / "b.zarr", "cube-single-play")


def test_a_stopped_conversion_goes_on_where_it_was(tmp_path, monkeypatch):
    rows = rows_of(ANTMAZE, (), range(4, 40, 5))
    source, read = write_file(tmp_path, ANTMAZE, rows), Rows.read
    convert_hdf5(source, tmp_path / "whole.zarr")

    def stop(self, spans):
        for number, episode in enumerate(read(self, spans)):
            if number == 3:
                raise KeyboardInterrupt
            yield episode

    monkeypatch.setattr(Rows, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_hdf5(source, tmp_path / "a.zarr")
    spans = []
    monkeypatch.setattr(Rows, "read", lambda self, todo: spans.extend(todo) or read(self, todo))
    convert_hdf5(source, tmp_path / "a.zarr")
    assert len(spans) == 8 - 3
    digests = [
        open_store(tmp_path / f"{name}.zarr").attributes["digests"] for name in ("a", "whole")
    ]
    assert digests[0] == digests[1]


def test_no_more_rows_are_read_at_once_than_a_block_or_an_episode(tmp_path, monkeypatch):
    sizes, read = [], Rows._block
    monkeypatch.setattr(d4rl_hdf5, "_BLOCK_ROWS", 8)
    monkeypatch.setattr(Rows, "_block", lambda self, a, b: sizes.append(b - a) or read(self, a, b))
    convert_hdf5(
        write_file(tmp_path, ANTMAZE, rows_of(ANTMAZE, (), range(2, 30, 3))), tmp_path / "a.zarr"
    )
    assert max(sizes) == 10  # the last episode, which nothing ends


def shuffled(rows):
    order = np.random.default_rng(0).permutation(len(rows["rewards"]))
    return {key: value[order] for key, value in rows.items()}


def with_value(value, at):
    def change(rows, key):
        array = rows[key].astype(np.asarray(value).dtype)
        array[at] = value
        return rows | {key: array}

    return change


BROKEN = {
    "key missing": lambda rows, key: rows | {key: None},
    "one row short": lambda rows, key: rows | {key: rows[key][:-1]},
    "text": lambda rows, key: rows | {key: np.full(len(rows[key]), b"x")},
    "a single number": lambda rows, key: rows | {key: np.float32(1)},
    "rows of another shape": lambda rows, key: rows | {key: np.zeros((len(rows[key]), 3))},
}
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def assert_refused(source, folder, match):
    with pytest.raises(StoreError, match=match) as refusal:
        convert_hdf5(source, folder / "a.zarr")
    assert str(source) in str(refusal.value)
    assert "download it again" in str(refusal.value)
    assert not list(folder.glob("a.zarr*"))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_array_is_refused_by_its_key_and_leaves_nothing(tmp_path, change, key):
    rows = change(rows_of(PEN, (), (9,)), key)
    match = r"pen-human-v1\.hdf5, (actions|observations|rewards)" if key == "observations" else key
    assert_refused(write_file(tmp_path, PEN, rows), tmp_path, match)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.float32(np.nan), np.float64(1e300)])
def test_a_value_that_is_not_finite_is_refused_by_its_row(tmp_path, key, value):
    rows = with_value(value, 23)(rows_of(PEN, (), (9,)), key)
    assert_refused(write_file(tmp_path, PEN, rows), tmp_path, f"{key}: .*not finite in row 23")


@pytest.mark.parametrize("key", ["terminals", "timeouts"])
def test_a_flag_other_than_0_and_1_is_refused(tmp_path, key):
    rows = with_value(np.int64(2), 5)(rows_of(PEN, (), (9,)), key)
    assert_refused(write_file(tmp_path, PEN, rows), tmp_path, f"{key}: values other than 0 and 1")


@pytest.mark.parametrize("dataset", [ANTMAZE, PEN])
def test_rows_in_another_order_are_refused(tmp_path, dataset):
    rows = shuffled(rows_of(dataset, (50, 60), range(99, 1000, 100), count=1000))
    assert_refused(
        write_file(tmp_path, dataset, rows), tmp_path, "observations: .*not in their order"
    )


def test_a_file_without_any_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl_hdf5, "_LONGEST", 20)
    rows = rows_of(ANTMAZE, (), (9,))
    assert_refused(
        write_file(tmp_path, ANTMAZE, rows),
        tmp_path,
        "timeouts: no episode ends in 20 rows from 10 on",
    )


@pytest.mark.parametrize("keep", [0.3, 0.98])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    source = write_file(tmp_path, PEN, rows_of(PEN, (), (9,)))
    source.write_bytes(source.read_bytes()[: int(keep * source.stat().st_size)])
    assert_refused(source, tmp_path, "the file: it cannot be read: .*truncated")


def test_a_flipped_byte_in_a_compressed_file_is_refused(tmp_path):
    rows = rows_of(PEN, (), (9,), count=2000)
    source = write_file(tmp_path, PEN, rows, compression="gzip")
    with h5py.File(source) as file:
        offset = file["actions"].id.get_chunk_info(0).byte_offset
    content = bytearray(source.read_bytes())
    content[offset + 1000] ^= 0xFF
    source.write_bytes(content)
    assert_refused(source, tmp_path, "actions: it cannot be read")


def test_a_file_that_is_no_hdf5_or_absent_is_refused(tmp_path):
    source = tmp_path / f"{PEN}.hdf5"
    with pytest.raises(StoreError, match=r"pen-human-v1\.hdf5 does not exist"):
        convert_hdf5(source, tmp_path / "a.zarr")
    source.write_bytes(b"<html>not found</html>")
    assert_refused(source, tmp_path, "the file: it cannot be read")


def put(file, key, **storage):
    """Replace an array by one that is stored otherwise."""
    old = file[key][()]
    del file[key]
    return file.create_dataset(key, old.shape, old.dtype, **storage)


STORED_ELSEWHERE = {
    "a link": lambda file, place: file.__setitem__("rewards", h5py.ExternalLink(place, "rewards")),
    "raw bytes": lambda file, place: put(
        file, "rewards", external=[(place, 0, h5py.h5f.UNLIMITED)]
    ),
}


@pytest.mark.parametrize("move", STORED_ELSEWHERE.values(), ids=STORED_ELSEWHERE.keys())
def test_an_array_that_lies_in_another_file_is_refused(tmp_path, move):
    rows = rows_of(PEN, (), (9,))
    source = write_file(tmp_path, PEN, rows)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1000))
    with h5py.File(source, "r+") as file:
        if "rewards" in file and move is STORED_ELSEWHERE["a link"]:
            del file["rewards"]
        move(file, str(secret))
    assert_refused(source, tmp_path, r"rewards: .*(another file|no array here)")


def test_a_chunk_that_takes_a_machines_memory_is_refused_before_it_is_decoded(tmp_path):
    source = write_file(tmp_path, PEN, rows_of(PEN, (), (9,)))
    with h5py.File(source, "r+") as file:
        put(file, "rewards", maxshape=(None,), chunks=(1 << 28,), compression="gzip")
    assert_refused(source, tmp_path, r"rewards: .*a chunk of it takes 1,073,741,824 bytes")
    with pytest.raises(ValueError, match="a chunk of it takes"):
        read_through(source)


def test_a_chunk_that_is_longer_than_the_file_is_refused_before_memory_is_taken(tmp_path):
    source = write_file(tmp_path, PEN, rows_of(PEN, (), (9,)))
    with h5py.File(source, "r+") as file:
        rewards = file["rewards"][()]
        put(file, "rewards", chunks=(5,), compression="gzip")[:] = rewards
    with h5py.File(source) as file:
        stored = file["rewards"].id.get_chunk_info(1)
    size, address = (stored.size.to_bytes(4, "little"), stored.byte_offset.to_bytes(8, "little"))
    content = bytearray(source.read_bytes())
    # A node of the tree that lists chunks: size, filters, two coordinates, where the chunk begins.
    at = content.index(size + bytes(4) + (5).to_bytes(8, "little") + bytes(8) + address)
    content[at + 3] = 0x10  # the fourth byte of its size: 256 MiB
    source.write_bytes(content)
    beyond = r"its chunk at \(5,\) ends 268,435,\d+ bytes after byte .* beyond the file"
    assert_refused(source, tmp_path, f"rewards: .*{beyond}")
    with pytest.raises(ValueError, match=beyond):
        read_through(source)


def test_rows_without_an_end_are_refused_before_all_of_them_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl_hdf5, "_LONGEST", 20)
    monkeypatch.setattr(d4rl_hdf5, "_BLOCK_ROWS", 10)
    read, block = [], d4rl_hdf5.Rows._block

    def counted(self, start, stop):
        read.append(start)
        return block(self, start, stop)

    monkeypatch.setattr(d4rl_hdf5.Rows, "_block", counted)
    source = write_file(tmp_path, PEN, rows_of(PEN, (), (9,), count=1000))
    assert_refused(source, tmp_path, "timeouts: no episode ends in 20 rows from 10 on")
    assert len(read) < 6
