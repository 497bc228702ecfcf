"""Writers that are stopped, at any moment, and gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deflow_vision.datasets import writer as writing
from deflow_vision.datasets.partial import DamagedSourceError, Partial
from deflow_vision.datasets.schema import create_array
from deflow_vision.datasets.store import StoreError, StoreWriter, add_goals, open_store, verify
from deflow_vision.types import UserError

LENGTHS = {"train": (3, 1, 6, 2, 9, 4, 4, 1), "val": (5, 2, 3)}


@pytest.fixture(autouse=True)
def record_each_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_SECONDS", 0.0)
    monkeypatch.setattr(Partial, "busy", Partial.wait)  # which gives None


def writer_of(path: Path, **changes: Any) -> StoreWriter:
    facts: dict[str, Any] = {
        "source": "test",
        "env_id": "env-v0",
        "seeds": {"train": 0},
        "observation_shape": (2, 3, 1),
        "observation_dtype": "uint8",
        "action_dim": 2,
        "side": {"qpos": (3,)},
        "goals": ["task1"],
        "versions": {"simulator": "1.0"},
        "chunk": 4,
        "plan": {"episodes": 8},
    }
    return StoreWriter(path, **facts | changes)


def append(writer: StoreWriter, split: str, number: int, length: int) -> None:
    """Episode `number` of a split: random bytes of its own."""
    rng = np.random.default_rng([number, len(split)])
    writer.append_episode(
        split,
        rng.integers(0, 256, (length, 2, 3, 1)).astype(np.uint8),
        rng.uniform(-1, 1, (length, 2)),
        {"task1": (rng.normal(size=length), np.ones(length))},
        qpos=rng.normal(size=(length, 3)),
    )


def fill(
    writer: StoreWriter, lengths: dict[str, Sequence[int]] = LENGTHS, stop: int | None = None
) -> None:
    """Append what the writer lacks; Ctrl-C before the episode with the number `stop` of all."""
    numbers = itertools.count()
    for split, all_lengths in lengths.items():
        for number, length in enumerate(all_lengths):
            if next(numbers) == stop:
                raise KeyboardInterrupt
            if number >= writer.episodes_done(split):
                append(writer, split, number, length)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of a store whose writer was never stopped."""
    with writer_of(tmp_path / "whole.zarr") as writer:
        fill(writer)
    return files_of(tmp_path / "whole.zarr")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Where a store will be whose writer was stopped after five episodes."""
    path = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt), writer_of(path) as writer:
        fill(writer, stop=5)
    return path


def test_stopped_writer_is_gone_on_with_from_where_it_was(
    stopped: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert not stopped.exists()
    with caplog.at_level("INFO"), writer_of(stopped) as writer:
        assert (writer.episodes_done("train"), writer.episodes_done("val")) == (5, 0)
        fill(writer)
    assert "going on after 5 train episodes" in caplog.text
    assert files_of(stopped) == whole
    assert verify(stopped) == []
    assert sorted(file.name for file in stopped.parent.iterdir()) == ["a.zarr", "whole.zarr"]


def test_stopping_tells_how_to_go_on(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), writer_of(stopped) as writer:
        fill(writer, stop=6)
    assert f"{stopped}.partial is kept: the same command goes on from there" in caplog.text


def test_writer_without_a_plan_starts_anew(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "a.zarr"
    writer = writer_of(path, plan=None).__enter__()
    fill(writer)
    assert writer.episodes_done("train") == 8
    writer._partial.unlock()  # killed
    with writer_of(path, plan=None) as writer:
        assert writer.episodes_done("train") == 0
        fill(writer)
    assert files_of(path) == whole


class Killed(BaseException):
    """What a simulated kill raises instead of ending the process."""


@contextlib.contextmanager
def killed_after(changes: int) -> Iterator[None]:
    """From the given number on, no change to the disk happens any more."""
    left = itertools.count(changes, -1)

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(left) <= 0:
                raise Killed
            return None if function is fsync else function(*args, **kwargs)

        return call

    def write_bytes(file: Path, content: bytes) -> None:
        """Half of it reaches the disk if the kill comes now."""
        alive = next(left) > 0
        with file.open("wb") as stream:
            stream.write(content if alive else content[: len(content) // 2])
        if not alive:
            raise Killed

    fsync = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "replace", "rename", "unlink", "rmdir", "fsync"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        patch.setattr(Path, "write_bytes", write_bytes)
        yield
        while asyncio.all_tasks(zarr.core.sync._get_loop()):  # they would live on behind the kill
            time.sleep(0.001)


def write_or_die(path: Path, changes: int, **facts: Any) -> bool:
    """Write a store, or as much of it as so many changes to the disk allow; whether it is there."""
    lengths = facts.pop("lengths")
    writer = writer_of(path, **facts)
    try:
        with killed_after(changes), contextlib.suppress(Killed), writer:
            fill(writer, lengths)
    finally:
        writer._partial.unlock()
    return path.exists()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    val_lengths=st.lists(st.integers(1, 9), max_size=3),
    chunk=st.integers(1, 6),
    seconds=st.sampled_from([0.0, 0.01, 1e9]),
    kills=st.lists(st.integers(1, 250), max_size=4),
)
@example([3, 9, 2], [4], 4, 0.0, list(range(5, 400, 25)))
def test_any_number_of_kills_changes_no_byte(
    lengths: list[int], val_lengths: list[int], chunk: int, seconds: float, kills: list[int]
) -> None:
    facts = {"lengths": {"train": lengths, "val": val_lengths}, "chunk": chunk}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_SECONDS", seconds)
        path, whole = Path(name, "a.zarr"), Path(name, "whole.zarr")
        assert write_or_die(whole, 10**9, **facts)
        for changes in (*kills, 10**9):
            if write_or_die(path, changes, **facts):
                break
        assert files_of(path) == files_of(whole)
        with pytest.raises(StoreError, match="exists"), writer_of(path):
            pass
        assert sorted(os.listdir(name)) == ["a.zarr", "whole.zarr"]


CHILD = """
import sys
import time
from pathlib import Path
from tests.datasets import test_writer as test
test.writing._SECONDS = 0.0
with test.writer_of(Path(sys.argv[1])) as writer:
    print("begun", sum(map(writer.episodes_done, ("train", "val"))), flush=True)
    for split, lengths in test.LENGTHS.items():
        for number in range(writer.episodes_done(split), len(lengths)):
            test.append(writer, split, number, lengths[number])
            print(split, number, flush=True)
            time.sleep(0.05)  # as a simulator would take
"""


def test_killed_process_leaves_what_the_next_one_goes_on_with(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = tmp_path / "a.zarr"
    done = []
    for lines in (4, 3, 100):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            said = list(itertools.islice(child.stdout, lines))
            if lines < 100:
                child.kill()
        done.append(int(said[0].split()[1]))
    assert 0 < done[1] <= done[2]
    assert files_of(path) == whole
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "whole.zarr"]


def test_store_does_not_depend_on_the_number_of_threads(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores in (1, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        path = tmp_path / f"{cores}.zarr"
        with writer_of(path) as writer:
            fill(writer)
        assert files_of(path) == whole


def test_blocks_are_those_that_zarr_writes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    group = zarr.create_group(tmp_path / "zarr")
    for name in ("observations", "actions", "qpos", "tasks/task1/rewards", "episode_ends"):
        written = zarr.open_array(tmp_path / "whole.zarr" / "train" / name, mode="r")
        rows = written[:]
        array = create_array(group, name, rows.shape[1:], str(rows.dtype), written.chunks[0])
        array.append(rows)
        files = files_of(tmp_path / "zarr" / name)
        assert len(files) > 1
        for file, content in files.items():
            assert whole[f"train/{name}/{file}"] == content


def test_second_writer_of_a_path_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "a.zarr"
    with writer_of(path) as writer:
        fill(writer, {"train": LENGTHS["train"]})
        with pytest.raises(StoreError, match="written by another process"), writer_of(path):
            pass
        fill(writer)
    assert files_of(path) == whole


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seeds": {"train": 1}}, "seeds.train: it has 0, you ask for 1"),
        ({"plan": {"episodes": 9}}, "plan.episodes: it has 8, you ask for 9"),
        ({"plan": None}, "plan: it has {'episodes': 8}, you ask for None"),
        ({"chunk": 5}, "chunk: it has 4, you ask for 5"),
        ({"compression_level": 4}, "compression_level: it has 1, you ask for 4"),
        ({"versions": {"simulator": "2.0"}}, "versions.simulator: it has '1.0'"),
        ({"render_profile": "fast"}, "render_profile: it has None, you ask for 'fast'"),
        ({"goals": ["task2"]}, "columns.tasks/task2/masks: it has None"),
    ],
)
def test_other_arguments_do_not_go_on(
    stopped: Path, changes: dict[str, Any], difference: str
) -> None:
    before = files_of(Path(f"{stopped}.partial"))
    with pytest.raises(StoreError) as error, writer_of(stopped, **changes):
        pass
    assert difference in str(error.value)
    assert "its 5 episodes are of another job" in str(error.value)
    assert f"{stopped}.partial" in str(error.value)
    assert "Delete that folder to start over" in str(error.value)
    assert files_of(Path(f"{stopped}.partial")) == before


@pytest.mark.parametrize("file", ["progress.npz", "store/train/observations/c/1/0/0/0"])
def test_damaged_partial_is_refused(stopped: Path, file: str) -> None:
    damaged = Path(f"{stopped}.partial", file)
    damaged.write_bytes(damaged.read_bytes()[:-30] if file.endswith("npz") else b"")
    with pytest.raises(StoreError, match=r"is (damaged|missing).*\n.*start over"):
        writer_of(stopped).__enter__()


def test_links_in_a_partial_are_refused_and_nothing_beyond_them_is_removed(
    stopped: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "zarr.json").write_text("mine")
    Path(f"{stopped}.partial", "store", "test").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"store/test is a symbolic link to"):
        writer_of(stopped).__enter__()
    assert (elsewhere / "zarr.json").read_text() == "mine"


def test_a_partial_that_is_itself_a_link_is_refused(stopped: Path, tmp_path: Path) -> None:
    Path(f"{stopped}.partial").rename(tmp_path / "elsewhere")
    Path(f"{stopped}.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="it is a symbolic link"):
        writer_of(stopped).__enter__()


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.pop("train/qpos"),
        lambda rows: rows.update({"train/qpos": rows["train/qpos"][:-1]}),
        lambda rows: rows.update({"train/qpos": rows["train/qpos"] * np.nan}),
        lambda rows: rows.update({"train/qpos": rows["train/qpos"][:, :1]}),
        lambda rows: rows.update(facts=np.frombuffer(b"{}", np.uint8)),
        lambda rows: rows.update(facts=np.frombuffer(b"[", np.uint8)),
    ],
)
def test_progress_that_does_not_fit_is_refused(stopped: Path, change: Callable[..., Any]) -> None:
    file = Path(f"{stopped}.partial", "progress.npz")
    rows = dict(np.load(file))
    change(rows)
    np.savez(file, **rows)
    with pytest.raises(StoreError, match=r"cannot be gone on with: .*\n.*start over"):
        writer_of(stopped).__enter__()


def test_progress_that_grows_when_it_is_read_is_refused(stopped: Path) -> None:
    file = Path(f"{stopped}.partial", "progress.npz")
    np.savez_compressed(file, **np.load(file))
    with pytest.raises(StoreError, match="it is compressed"):
        writer_of(stopped).__enter__()


def append_refused(writer: StoreWriter) -> None:
    frames, goals = np.zeros((3, 2, 3, 1), np.uint8), {"task1": (np.zeros(3), np.ones(3))}
    writer.append_episode("train", frames, np.zeros((2, 2)), goals, qpos=np.full((3, 3), np.nan))


def test_refused_episode_is_named_and_what_was_recorded_before_it_kept(
    stopped: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    named = r"a\.zarr: episode 5 of train, counted from 0, is refused: qpos.* not finite"
    with pytest.raises(StoreError, match=named), writer_of(stopped) as writer:
        append_refused(writer)
    assert f"{stopped}.partial is kept" in caplog.text
    assert not stopped.exists()
    with writer_of(stopped) as writer:
        assert writer.episodes_done("train") == 5
        fill(writer)
    assert files_of(stopped) == whole


def test_refused_episode_before_anything_was_recorded_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="episode 0"), writer_of(tmp_path / "a.zarr") as writer:
        append_refused(writer)
    assert list(tmp_path.iterdir()) == []


def test_damaged_source_leaves_nothing_even_of_a_run_before(stopped: Path) -> None:
    with pytest.raises(StoreError, match="CRC"), writer_of(stopped):
        raise DamagedSourceError("its CRC is another one")
    assert list(stopped.parent.iterdir()) == []


def test_error_before_any_episode_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writer_of(tmp_path / "a.zarr") as writer:
        fill(writer, stop=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "file",
    [
        "store/train/observations/c/5/0/0/0",  # amid an episode
        "progress.npz",
        "store/train/episode_ends/c/0",  # when all are appended
        "store/zarr.json",
    ],
)
def test_full_disk_is_named_and_what_is_written_kept(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    path = tmp_path / "a.zarr"
    partial = Path(f"{path}.partial")

    def full(target: Any) -> None:
        if partial / file == Path(target) and (partial / "progress.npz").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    replace, write = os.replace, Path.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new: (full(new), replace(old, new)))
        patch.setattr(Path, "write_bytes", lambda new, content: (full(new), write(new, content)))
        with (
            pytest.raises(StoreError, match=r"no space is left on the disk\. Free some.*to go on"),
            writer_of(path) as writer,
        ):
            fill(writer)
    with writer_of(path) as writer:
        assert writer.episodes_done("train") > 0
        fill(writer)
    assert files_of(path) == whole


def test_disk_that_is_still_full_is_named_again(
    stopped: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StoreError, match=r"no space is left .* to go on"):
            writer_of(stopped).__enter__()
    with writer_of(stopped) as writer:
        fill(writer)
    assert files_of(stopped) == whole


def test_rewards_of_transitions_alone_are_repeated_for_the_last_state(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with writer_of(path, side=None) as writer:
        frames = np.zeros((3, 2, 3, 1), np.uint8)
        writer.append_episode("train", frames, np.zeros((2, 2)), {"task1": ([5, 7], [1, 0])})
    train = open_store(path).train
    assert train.rewards("task1").tolist() == [5, 7, 7]
    assert train.masks("task1").tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ({}, "tasks/task1/rewards"),
        ({"task1": (np.zeros(5), np.ones(3))}, "rewards has 5 rows in an episode of 3"),
        ({"task1": (np.zeros(3), np.full(3, 0.5))}, "masks other than 0 and 1"),
        ({"task1": (np.full(3, np.inf), np.ones(3))}, "task1/rewards: values that are not finite"),
        ({"task1": (np.zeros((3, 1)), np.ones(3))}, r"task1/rewards: rows of shape \(1,\)"),
        ({"task1": (np.full(3, "one"), np.ones(3))}, "task1/rewards: dtype <U3"),
        ({"task1": (np.float32(1), np.ones(3))}, "task1/rewards: a single number"),
    ],
)
def test_goals_that_do_not_fit_are_refused(tmp_path: Path, goals: Any, message: str) -> None:
    frames = np.zeros((3, 2, 3, 1), np.uint8)
    with (
        pytest.raises(StoreError, match=message),
        writer_of(tmp_path / "a.zarr", side=None) as writer,
    ):
        writer.append_episode("train", frames, np.zeros((2, 2)), goals)


FITTING = {
    "observations": np.zeros((3, 2)),
    "actions": np.zeros((2, 2)),
    "qpos": np.zeros((3, 3)),
    "button_states": np.zeros((3, 1), int),
}


def write_one(path: Path, **changes: np.ndarray) -> Path:
    """A store of one episode of three states."""
    layout = {"observation_shape": (2,), "observation_dtype": "float32", "goals": []}
    side = {"qpos": (3,), "button_states": (1,)}
    with writer_of(path, **layout, side=side, plan=None) as writer:
        writer.append_episode("train", **FITTING | changes)
    return path


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("observations", np.zeros((3, 2), complex), "observations: dtype complex128"),
        ("observations", np.full((3, 2), 1e300), "observations: values that are not finite"),
        ("observations", np.full((3, 2), None), "observations: dtype object"),
        ("actions", np.full((2, 2), "left"), "actions: dtype <U4"),
        ("actions", np.zeros(2), r"actions: rows of shape \(\)"),
        ("actions", np.full((2, 2), np.nan), "actions: values that are not finite"),
        ("actions", np.full((2, 2), -50.0), r"actions up to 50 .*\[-1, 1\], 2 \* \(action - low"),
        ("actions", np.full((2, 2), 1 + 1e-5), r"actions up to 1.00001 "),
        ("button_states", np.full((3, 1), 0.7), "button_states: values that are not whole"),
        ("button_states", np.full((3, 1), np.nan), "button_states: values that are not whole"),
        ("button_states", np.full((3, 1), 1e300), "button_states: values that are not whole"),
        ("button_states", np.full((3, 1), 2**63, np.uint64), "values that are not whole"),
    ],
)
def test_values_that_a_store_cannot_hold_are_refused(
    tmp_path: Path, name: str, rows: np.ndarray, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        write_one(tmp_path / "a.zarr", **{name: rows})


def test_whole_numbers_of_any_dtype_are_taken(tmp_path: Path) -> None:
    changes = {
        "observations": np.ones((3, 2), bool),
        "actions": np.full((2, 2), -1),
        "button_states": np.full((3, 1), 2.0),
    }
    train = open_store(write_one(tmp_path / "a.zarr", **changes)).train
    assert train.observations[0].tolist() == [1, 1]
    assert train.actions[0].tolist() == [-1, -1]
    assert train.side["button_states"][0].tolist() == [2]


ODD_GOALS = ("../../../victim", "..", ".", "", "a/b", "a\\b", ".hidden", "a\n", "c", "zarr.json")


@pytest.mark.parametrize("goal", ODD_GOALS)
def test_goal_that_is_no_plain_name_is_refused_by_the_writer(tmp_path: Path, goal: str) -> None:
    with pytest.raises(StoreError, match=r"goal .*: name it"):
        writer_of(tmp_path / "a.zarr", goals=[goal])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("goal", ODD_GOALS)
def test_goal_that_is_no_plain_name_is_refused_before_anything_is_touched(
    tmp_path: Path, goal: str
) -> None:
    path = write_one(tmp_path / "a" / "b.zarr")
    (tmp_path / "victim").mkdir()
    before = files_of(path)
    labels = (np.zeros(3), np.ones(3))
    with pytest.raises(StoreError, match=r"goal .*: name it"):
        add_goals(path, {"train": {"fine": labels, goal: labels}})
    assert files_of(path) == before
    assert (tmp_path / "victim").is_dir()


def test_goals_are_added_all_or_none(tmp_path: Path) -> None:
    path = write_one(tmp_path / "a.zarr")
    before = files_of(path)
    with pytest.raises(StoreError, match="2 rewards for 3 states"):
        add_goals(
            path,
            {"train": {"fine": (np.zeros(3), np.ones(3)), "short": (np.zeros(2), np.ones(2))}},
        )
    assert files_of(path) == before
