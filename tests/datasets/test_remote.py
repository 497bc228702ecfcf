"""Stores at addresses: the same batches as on a disk, few requests, and what can go wrong."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from deflow_vision.datasets.block_cache import BlockCache
from deflow_vision.datasets.card import card
from deflow_vision.datasets.convert import convert
from deflow_vision.datasets.relabel import relabel_store
from deflow_vision.datasets.sampler import make_sampler
from deflow_vision.datasets.schema import read_all, read_rows
from deflow_vision.datasets.store import Store, StoreError, add_goals, open_store, verify
from tests.datasets.conftest import write_store
from tests.servers import S3, Web

MakeStore = Callable[..., Path]
LENGTHS = (6, 2, 9, 7, 8)


def batches(store: Store, residency: Any, count: int = 12) -> list[np.ndarray]:
    sampler = make_sampler(
        store.train,
        "task1",
        frame_stack=2,
        batch_size=5,
        seed=3,
        residency=residency,
        window_blocks=3,
        fields=("next_actions",),
    )
    try:
        return [value for k in range(count) for value in sampler.batch(k) if value is not None]
    finally:
        sampler.close()


def blocks(requests: list[str]) -> list[str]:
    return [request for request in requests if "/c/" in request]


def cache_of(tmp_path: Path, max_bytes: int = 1 << 20) -> BlockCache:
    return BlockCache(tmp_path / "cache", max_bytes)


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("residency", ["stream", "ram"])
def test_batches_from_s3_equal_those_from_the_disk(
    make_store: MakeStore, s3: S3, tmp_path: Path, residency: str, pixels: bool
) -> None:
    path = make_store(LENGTHS, pixels=pixels)
    address = s3.upload(path, f"equal-{residency}-{pixels}.zarr")
    there = batches(open_store(address, cache_of(tmp_path, 1000)), residency)
    for here, value in zip(batches(open_store(path), residency), there, strict=True):
        np.testing.assert_array_equal(here, value)
    assert sum(file.stat().st_size for file in (tmp_path / "cache").glob("*/*")) <= 1000


def test_a_second_run_reads_its_blocks_from_the_cache(
    make_store: MakeStore, s3: S3, tmp_path: Path
) -> None:
    address = s3.upload(make_store(LENGTHS), "twice.zarr")
    requests = s3.count_requests()
    first = batches(open_store(address, cache_of(tmp_path)), "stream")
    assert len(set(blocks(requests))) == 8 + 3 + 2  # frames; columns; where episodes end
    requests.clear()
    second = batches(open_store(address, cache_of(tmp_path)), "stream")
    assert blocks(requests) == []
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))


def test_opening_asks_once_for_each_array_and_lists_nothing(make_store: MakeStore, s3: S3) -> None:
    address = s3.upload(make_store(), "opening.zarr")
    requests = s3.count_requests()
    store = open_store(address)
    arrays = len(store.attributes["digests"])
    assert len(requests) == 1 + arrays + len(blocks(requests))
    assert len(blocks(requests)) == 2  # where episodes end, in train and val


def test_frames_that_are_read_once_into_memory_are_not_kept(
    make_store: MakeStore, s3: S3, tmp_path: Path
) -> None:
    address = s3.upload(make_store(), "ram.zarr")
    batches(open_store(address, cache_of(tmp_path)), "ram")
    kept = {file.name.split(".c.")[0] for file in (tmp_path / "cache").glob("*/*")}
    assert "train.actions" in kept
    assert "train.observations" not in kept


def test_a_web_server_that_lists_nothing_will_do(make_store: MakeStore, web: Web) -> None:
    path = make_store(LENGTHS)
    store = open_store(f"{web.address}/{path.name}/")
    assert store.path == f"{web.address}/{path.name}"
    for pair in zip(batches(store, "stream"), batches(open_store(path), "stream"), strict=True):
        np.testing.assert_array_equal(*pair)


def test_the_card_of_an_address_has_sizes_where_the_server_lists(
    make_store: MakeStore, s3: S3, web: Web
) -> None:
    path = make_store()
    shown = {}
    for place in (path, s3.upload(path, "card.zarr"), f"{web.address}/{path.name}"):
        console = Console(record=True, width=100, file=io.StringIO())
        console.print(card(place))
        text = console.export_text()
        assert str(place) in text
        shown[place] = [line for line in text.splitlines() if "train/observations" in line]
    here, there, unlisted = shown.values()
    assert here == there
    assert "?" in unlisted[0]


def test_a_folder_may_be_given_as_a_file_address(make_store: MakeStore) -> None:
    path = make_store()
    assert open_store(f"file://{path}").path == path


def test_verify_finds_a_block_at_an_address_that_is_of_another_store(
    make_store: MakeStore, web: Web
) -> None:
    path = make_store()
    address = f"{web.address}/{path.name}"
    assert verify(address) == []
    block = "train/observations/c/1/0/0/0"
    other = (path / "train/observations/c/2/0/0/0").read_bytes()
    web.fault = lambda asked: other if asked.endswith(block) else None
    assert verify(address) == [
        "train/observations, block 1 (rows 4 to 7): it is not the block that was written there"
    ]


def test_a_missing_block_is_an_error_and_no_zeros(make_store: MakeStore, s3: S3) -> None:
    address = s3.upload(make_store(), "missing.zarr")
    s3.connect("missing.zarr").delete("train/observations/c/1/0/0/0")
    store = open_store(address)
    message = f"{address} is damaged: train/observations/c/1/0/0/0 does not exist"
    with pytest.raises(StoreError, match=message):
        read_rows(store.train.observations, 0, 8)


def test_a_damaged_file_of_the_cache_is_fetched_again(
    make_store: MakeStore, s3: S3, tmp_path: Path
) -> None:
    path = make_store()
    address = s3.upload(path, "damaged-cache.zarr")
    store = open_store(address, cache_of(tmp_path))
    read_rows(store.train.observations, 0, 4)
    (kept,) = (tmp_path / "cache").glob("*/train.observations.c.0.*")
    for damage in (kept.read_bytes()[:-9], b"", b"x" + kept.read_bytes()[1:]):
        kept.write_bytes(damage)
        rows = read_rows(store.train.observations, 0, 4)
        np.testing.assert_array_equal(rows, read_rows(open_store(path).train.observations, 0, 4))
    assert kept.read_bytes() == (path / "train/observations/c/0/0/0/0").read_bytes()


@pytest.mark.parametrize("cached", [True, False])
def test_a_block_that_is_altered_at_its_address_is_an_error(
    make_store: MakeStore, web: Web, tmp_path: Path, cached: bool
) -> None:
    path = make_store()
    block = bytearray((path / "train/observations/c/1/0/0/0").read_bytes())
    block[-1] ^= 1
    web.fault = lambda asked: bytes(block) if asked.endswith("observations/c/1/0/0/0") else None
    store = open_store(f"{web.address}/{path.name}", cache_of(tmp_path) if cached else None)
    with pytest.raises(StoreError, match=r"train/observations, block 1 \(rows 4 to 7\)"):
        read_rows(store.train.observations, 0, 8)
    web.fault = lambda asked: None
    assert read_rows(store.train.observations, 0, 8).shape == (8, 4, 6, 3)


def test_an_outage_shorter_than_the_patience_changes_no_batch(
    make_store: MakeStore, s3: S3, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_store(LENGTHS)
    address = s3.upload(path, "short.zarr")
    store = open_store(address, retry_seconds=60)
    caplog.set_level(logging.WARNING, "deflow_vision")
    s3.stop()
    back = threading.Timer(0.5, s3.start)
    back.start()
    there = batches(store, "stream")
    back.join()
    for pair in zip(there, batches(open_store(path), "stream"), strict=True):
        np.testing.assert_array_equal(*pair)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("deflow_vision")]
    assert f"{address} does not answer" in said[0]
    assert f"{address} answers again" in said[-1]


def test_a_longer_outage_ends_with_the_address_the_key_and_the_last_error(
    make_store: MakeStore, web: Web
) -> None:
    path = make_store()
    store = open_store(f"{web.address}/{path.name}", retry_seconds=0.5)
    web.fault = lambda asked: 503
    started = time.monotonic()
    message = (
        f"{web.address}/{path.name}/train/observations/c/0/0/0/0 could not be read for .* seconds, "
        "the last time because of: .*503 Service Unavailable"
    )
    with pytest.raises(StoreError, match=message):
        read_rows(store.train.observations, 0, 4)
    assert time.monotonic() - started < 5
    assert len(web.requests) > 5


def test_closing_ends_the_wait_for_an_address(make_store: MakeStore, web: Web) -> None:
    path = make_store()
    store = open_store(f"{web.address}/{path.name}", retry_seconds=300)
    web.fault = lambda asked: 503
    threading.Timer(0.3, store.close).start()
    started = time.monotonic()
    with pytest.raises(StoreError, match="could not be read"):
        read_all(store.train.observations)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("status", "word"), [(403, "403 Forbidden"), (400, "400 Bad Request")])
def test_wrong_credentials_are_told_at_once(
    make_store: MakeStore, s3: S3, web: Web, monkeypatch: pytest.MonkeyPatch, status: int, word: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
    web.fault = lambda asked: status
    with pytest.raises(StoreError, match=f"{word}.*AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket/x.zarr")
    assert len(web.requests) == 1


def test_a_missing_bucket_is_named(s3: S3) -> None:
    with pytest.raises(StoreError, match=r"s3://nowhere/x.zarr is not a .*NoSuchBucket"):
        open_store("s3://nowhere/x.zarr")


@pytest.mark.parametrize("content", [b"not JSON", b"{}", None], ids=["text", "empty", "absent"])
def test_what_is_not_a_store_is_refused(web: Web, tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "x.zarr").mkdir()
    if content is not None:
        (tmp_path / "x.zarr" / "zarr.json").write_bytes(content)
    with pytest.raises(StoreError, match=f"{web.address}/x.zarr is not a deflow-vision store"):
        open_store(f"{web.address}/x.zarr")


def test_an_array_that_is_missing_at_an_address_is_named(make_store: MakeStore, web: Web) -> None:
    path = make_store()
    facts = json.loads((path / "zarr.json").read_text())
    (path / "train/actions/zarr.json").unlink()
    assert "train/actions" in facts["attributes"]["digests"]
    with pytest.raises(StoreError, match="array train/actions is missing"):
        open_store(f"{web.address}/{path.name}")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/x.zarr", "ftp://host/x.zarr is no address of a store"),
        ("s3:///x.zarr", "is no address of a store"),
        ("http://me:word@host/x.zarr", "has no user, password"),
        ("https://host/x.zarr?sig=word", "has no user, password"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as raised:
        open_store(address)
    assert "word" not in str(raised.value).replace("password", "")


@pytest.mark.parametrize("place", ["s3://bucket/x.zarr", Path("s3://bucket/x.zarr")], ids=type)
def test_nothing_is_written_at_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    writers: list[Callable[[], Any]] = [
        lambda: write_store(Path(place)),
        lambda: add_goals(place, {}),
        lambda: relabel_store(place),
        lambda: convert("cube-single-play-v0.npz", place),
    ]
    for write in writers:
        with pytest.raises(StoreError, match=r"s3://bucket/x.zarr is an address, .* `aws s3 cp"):
            write()
    assert list(tmp_path.iterdir()) == []
