"""The folder of blocks: bounded whatever happens, shared by stores and processes."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import threading
from pathlib import Path

import pytest

from deflow_vision.datasets.block_cache import BlockCache
from deflow_vision.datasets.store import StoreError


def held(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*"))


def fill(folder: Path, store: str, count: int = 40) -> None:
    cache = BlockCache(folder, 1000)
    for number in range(count):
        cache.write(store, str(number), bytes(90))


def test_a_block_is_kept_for_later_caches_of_the_folder(tmp_path: Path) -> None:
    BlockCache(tmp_path, 100).write("a", "1", b"block")
    assert BlockCache(tmp_path, 100).read("a", "1") == b"block"
    assert BlockCache(tmp_path, 100).read("b", "1") is None


def test_blocks_of_the_same_store_stay_when_the_folder_is_full(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    assert sorted(int(file.name) for file in tmp_path.glob("a/*")) == list(range(11))


def test_other_stores_make_room_least_recently_read_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    for number in range(10):
        cache.write("old", str(number), bytes(100))
        assert cache.read("old", "0") is not None
    for number in range(4):
        cache.write("new", str(number), bytes(100))
    assert {file.name for file in tmp_path.glob("new/*")} == {"0", "1", "2", "3"}
    assert cache.read("old", "0") is not None
    assert cache.read("old", "1") is None
    assert held(tmp_path) <= 1000


def test_a_smaller_bound_holds_at_once(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    BlockCache(tmp_path, 300)
    assert held(tmp_path) <= 300


def test_a_block_greater_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 100)
    cache.write("a", "1", bytes(101))
    assert cache.read("a", "1") is None


def test_threads_and_processes_together_never_exceed_the_bound(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(tmp_path, name, 400)) for name in "ab"]
    workers += [threading.Thread(target=fill, args=(tmp_path, name, 400)) for name in "bc"]
    for worker in workers:
        worker.start()
    most = 0
    while any(worker.is_alive() for worker in workers):
        with (tmp_path / "bytes").open("a") as tally:
            fcntl.flock(tally, fcntl.LOCK_EX)  # or a block that makes room might be counted too
            most = max(most, held(tmp_path))
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[:2]] == [0, 0]
    assert 500 < max(most, held(tmp_path)) <= 1000


def test_what_a_killed_process_left_counts_and_gives_way(tmp_path: Path) -> None:
    BlockCache(tmp_path, 1000).write("a", "1", bytes(100))
    (tmp_path / "a" / "2.99-1.part").write_bytes(bytes(800))
    cache = BlockCache(tmp_path, 1000)
    cache.write("b", "1", bytes(500))
    assert cache.read("b", "1") is not None
    assert held(tmp_path) <= 1000


def test_a_full_disk_ends_the_keeping_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = BlockCache(tmp_path, 1000)
    cache.write("a", "1", b"before")

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_reserve", full)
    cache.write("a", "2", b"block")
    cache.write("a", "3", b"block")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text
    assert cache.read("a", "1") == b"before"


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/cache cannot be written: Not a directory"):
        BlockCache(tmp_path / "file" / "cache", 100)
