from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest
import yaml

from deflow_vision.datasets import download as downloading
from deflow_vision.datasets.convert import convert
from deflow_vision.datasets.download import DownloadError, download, fetch, set_aside_damaged
from deflow_vision.tasks import all_tasks, configs_root


def npz_bytes(first: int = 0) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, observations=np.arange(first, first + 50_000, dtype=np.float32))
    return stream.getvalue()


def hdf5_bytes() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        numbers = np.random.default_rng(0).normal(size=2000)
        file.create_dataset("observations", data=numbers, compression="gzip", fletcher32=True)
    return stream.getvalue()


def compressed_at() -> int:
    with h5py.File(io.BytesIO(hdf5_bytes())) as file:
        return int(file["observations"].id.get_chunk_info(0).byte_offset)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Host(ThreadingHTTPServer):
    """Serves `content` under any name, with the faults that its attributes ask for."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.version = ("ETag", '"one"')
        self.break_after: int | None = None  # bytes, once
        self.always_breaks = False
        self.stall_after: int | None = None  # bytes, once
        self.length_off: int | None = 0  # how far Content-Length is from the truth; None: none
        self.ranges = True
        self.range_off = 0  # how far Content-Range is from the truth
        self.checks_version = True
        self.status = 200
        self.released = threading.Event()
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/a.npz"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{{file}}"

    def stop(self) -> None:
        self.released.set()
        self.shutdown()


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host, start = self.server, 0
        asked = self.headers.get("Range")
        host.requests.append((self.path, asked))
        if host.status != 200:
            self.send_error(host.status)
            return
        fresh = self.headers.get("If-Range") == host.version[1] or not host.checks_version
        if asked and fresh and host.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        size = len(host.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + host.range_off
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        if host.length_off is not None:
            self.send_header("Content-Length", str(size - start + host.length_off))
        self.send_header(*host.version)
        self.end_headers()
        stop = host.break_after
        host.break_after = stop if host.always_breaks else None
        stall, host.stall_after = host.stall_after, None
        self.wfile.write(host.content[start : stop or stall])
        if stall is not None:
            self.wfile.flush()
            host.released.wait(10)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(host: Host) -> Iterator[Host]:
    with host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield host
        host.stop()
        thread.join()


@pytest.fixture
def host() -> Iterator[Host]:
    with serving(Host(npz_bytes())) as server:
        yield server


def get(host, folder, **changes):
    arguments = {"urls": [host.url], "pause": 0.0} | changes
    return fetch(folder / "a.npz", **arguments)


def leave(folder, content, host, version='"one"'):
    """What a download that was cut off leaves."""
    (folder / "a.npz.part").write_bytes(content)
    state = {"url": host.url, "version": version}
    (folder / "a.npz.part.json").write_text(json.dumps(state))


def test_download_that_breaks_off_is_resumed_where_it_stopped(host, tmp_path):
    host.break_after = 100_000
    path = get(host, tmp_path)
    assert path.read_bytes() == host.content
    assert host.requests == [("/a.npz", None), ("/a.npz", "bytes=100000-")]


def test_digest_is_kept_beside_the_file_and_nothing_else_is_left(host, tmp_path):
    get(host, tmp_path)
    assert (tmp_path / "a.npz.sha256").read_text() == f"{sha256(host.content)}  a.npz\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.npz.sha256"]


def test_connection_that_stalls_is_cut_and_gone_on_with(host, tmp_path):
    host.stall_after = 100_000
    assert get(host, tmp_path, timeout=0.2).read_bytes() == host.content
    assert host.requests[1] == ("/a.npz", "bytes=100000-")


def test_next_run_goes_on_with_a_partial_file(host, tmp_path):
    leave(tmp_path, host.content[:300], host)
    assert get(host, tmp_path).read_bytes() == host.content
    assert host.requests == [("/a.npz", "bytes=300-")]


def test_partial_file_of_another_address_is_not_gone_on_with(host, tmp_path):
    leave(tmp_path, b"from the mirror", host)
    (tmp_path / "a.npz.part.json").write_text('{"url": "http://mirror/a.npz", "version": "1"}')
    assert get(host, tmp_path).read_bytes() == host.content
    assert host.requests == [("/a.npz", None)]


def test_partial_file_whose_record_is_torn_is_begun_anew(host, tmp_path):
    leave(tmp_path, b"half", host)
    (tmp_path / "a.npz.part.json").write_text('{"url": "http')
    assert get(host, tmp_path).read_bytes() == host.content


def test_complete_partial_file_is_taken_as_it_is(host, tmp_path):
    leave(tmp_path, host.content, host)
    assert get(host, tmp_path).read_bytes() == host.content


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
@pytest.mark.parametrize("checks_version", [True, False])
def test_file_that_changed_meanwhile_comes_whole(host, tmp_path, header, checks_version):
    host.version, host.checks_version = (header, "two"), checks_version
    leave(tmp_path, b"of an older version", host, version="one")
    assert get(host, tmp_path).read_bytes() == host.content


def test_file_that_became_shorter_comes_whole(host, tmp_path):
    host.checks_version = False
    leave(tmp_path, host.content + b"and more", host)
    assert get(host, tmp_path).read_bytes() == host.content


def test_server_without_ranges_sends_the_whole_file_again(host, tmp_path):
    host.ranges, host.break_after = False, 100_000
    assert get(host, tmp_path).read_bytes() == host.content
    assert len(host.requests) == 2


def test_file_shorter_than_its_announced_length_is_never_taken(host, tmp_path):
    host.length_off, host.ranges = 50, False
    with pytest.raises(DownloadError, match="closed early"):
        get(host, tmp_path)
    assert not (tmp_path / "a.npz").exists()


def test_file_longer_than_its_announced_length_is_refused(host, tmp_path):
    host.length_off = -50
    with pytest.raises(DownloadError, match=r"not an \.npz file"):
        get(host, tmp_path)


def test_file_of_no_announced_length_is_whole_only_when_its_end_is_there(host, tmp_path):
    host.length_off, host.break_after = None, 100_000
    assert get(host, tmp_path).read_bytes() == host.content
    assert host.requests == [("/a.npz", None), ("/a.npz", "bytes=100000-")]


def test_hdf5_file_of_no_announced_length_is_whole_only_when_all_of_it_is_there(host, tmp_path):
    host.content = hdf5_bytes()
    host.length_off, host.break_after = None, 3000
    (path,) = download("pen-human-v1", tmp_path, addresses=[host.address], pause=0.0)
    assert path.read_bytes() == host.content
    assert len(host.requests) == 2


def test_half_a_file_of_no_announced_length_is_never_taken(host, tmp_path):
    host.length_off, host.break_after, host.always_breaks = None, 100_000, True
    host.ranges = False
    with pytest.raises(DownloadError, match="closed early"):
        get(host, tmp_path)
    assert [path.name for path in tmp_path.glob("a.npz*") if path.stat().st_size > 100_000] == []
    assert not (tmp_path / "a.npz.sha256").exists()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_npz_with_a_flipped_byte_is_never_taken(host, tmp_path):
    host.content = flipped(host.content, 5000)
    with pytest.raises(DownloadError, match=r"observations\.npy .*damaged"):
        get(host, tmp_path)
    assert not list(tmp_path.glob("a.npz")) + list(tmp_path.glob("*.sha256"))


def test_hdf5_that_does_not_decode_is_never_taken(host, tmp_path):
    content, place = hdf5_bytes(), compressed_at()
    host.content = flipped(content, place + 500)
    with pytest.raises(DownloadError, match="damaged"):
        download("pen-human-v1", tmp_path, addresses=[host.address], pause=0.0)
    assert not list(tmp_path.glob("*.hdf5")) + list(tmp_path.glob("*.sha256"))


def test_npz_placed_by_hand_with_a_flipped_byte_is_refused(host, tmp_path):
    (tmp_path / "a.npz").write_bytes(flipped(host.content, 5000))
    with pytest.raises(DownloadError, match=r"a\.npz: .*damaged"):
        get(host, tmp_path)
    assert not (tmp_path / "a.npz.sha256").exists()


def test_damaged_files_are_set_aside_with_their_digests_and_sound_ones_stay(host, tmp_path):
    bad, good = tmp_path / "a.npz", tmp_path / "b.npz"
    bad.write_bytes(flipped(host.content, 5000))
    good.write_bytes(host.content)
    (tmp_path / "a.npz.sha256").write_text(f"{sha256(bad.read_bytes())}  a.npz\n")
    assert set_aside_damaged([bad, good]) == [tmp_path / "a.npz.damaged"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz.damaged", "b.npz"]


def test_host_that_answers_ranges_wrongly_and_breaks_off_is_given_up(host, tmp_path, monkeypatch):
    waits = iter(range(10))
    monkeypatch.setattr("time.sleep", lambda seconds: next(waits))  # and no endless loop
    host.range_off, host.break_after, host.always_breaks = 7, 100_000, True
    with pytest.raises(DownloadError, match="closed early"):
        get(host, tmp_path)
    assert len(host.requests) <= 5


def test_file_that_another_process_has_just_finished_is_taken(host, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def lock(part):  # the other one renames the `.part` that this one waited for
        (tmp_path / "a.npz").write_bytes(host.content)
        yield

    monkeypatch.setattr(downloading, "lock", lock)
    assert get(host, tmp_path).read_bytes() == host.content
    assert host.requests == []


def test_present_file_is_checked_and_not_downloaded_again(host, tmp_path):
    get(host, tmp_path)
    assert get(host, tmp_path).read_bytes() == host.content
    assert len(host.requests) == 1


def test_file_placed_by_hand_is_taken_and_its_digest_recorded(host, tmp_path):
    (tmp_path / "a.npz").write_bytes(host.content)
    get(host, tmp_path)
    assert (tmp_path / "a.npz.sha256").read_text().startswith(sha256(host.content))
    assert host.requests == []


def test_page_placed_by_hand_is_refused(host, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"<html>log in first</html>")
    with pytest.raises(DownloadError, match=r"a\.npz: this is not an \.npz file"):
        get(host, tmp_path)
    assert not (tmp_path / "a.npz.sha256").exists()


def test_file_altered_after_its_download_is_refused_with_both_digests(host, tmp_path):
    path = get(host, tmp_path)
    path.write_bytes(host.content[:-1] + b"x")
    now = sha256(path.read_bytes())
    with pytest.raises(DownloadError, match=f"{now}, not {sha256(host.content)}.*delete it"):
        get(host, tmp_path)


def test_file_altered_after_its_download_is_found_before_conversion(host, tmp_path):
    (path,) = (get(host, tmp_path).rename(tmp_path / "cube-single-play-v0.npz"),)
    (tmp_path / "a.npz.sha256").rename(tmp_path / "cube-single-play-v0.npz.sha256")
    path.write_bytes(host.content + b"x")
    with pytest.raises(DownloadError, match="has changed since it arrived"):
        convert(path, tmp_path / "store.zarr")
    assert not list(tmp_path.glob("store*"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no digest  a.npz\n"])
def test_a_record_without_a_digest_is_refused_with_the_way_out(host, tmp_path, content):
    get(host, tmp_path)
    (tmp_path / "a.npz.sha256").write_bytes(content)
    with pytest.raises(DownloadError, match=r"a\.npz\.sha256 holds no SHA-256: delete it"):
        get(host, tmp_path)


def test_a_validation_file_that_was_there_once_and_is_missing_is_asked_for(host, tmp_path):
    fetch(tmp_path / "cube-single-play-v0.npz", [host.url], pause=0.0)
    fetch(tmp_path / "cube-single-play-v0-val.npz", [host.url], pause=0.0)
    (tmp_path / "cube-single-play-v0-val.npz").unlink()
    with pytest.raises(DownloadError, match=r"-val\.npz is missing, and its digest is here"):
        convert(tmp_path / "cube-single-play-v0.npz", tmp_path / "store.zarr")


def test_next_address_is_tried_when_one_does_not_answer(host, tmp_path):
    assert get(host, tmp_path, urls=["http://127.0.0.1:9/a.npz", host.url]).is_file()


def test_mirror_is_tried_when_an_address_has_no_such_file(host, tmp_path):
    with serving(Host(b"")) as empty:
        empty.status = 404
        assert get(host, tmp_path, urls=[empty.url, host.url]).read_bytes() == host.content
        assert len(empty.requests) == 1


def test_mirror_is_tried_when_an_address_serves_wrong_bytes(host, tmp_path):
    with serving(Host(npz_bytes(1))) as wrong:
        known = sha256(host.content)
        path = get(host, tmp_path, urls=[wrong.url, host.url], sha256=known)
    assert path.read_bytes() == host.content


def test_error_names_every_address_and_the_place_for_the_file(host, tmp_path):
    host.status = 404
    with pytest.raises(DownloadError) as error:
        get(host, tmp_path)
    for text in (host.url, "404", str(tmp_path / "a.npz")):
        assert text in str(error.value)


def test_host_that_is_down_is_asked_again_and_then_given_up(host, tmp_path):
    host.status = 503
    with pytest.raises(DownloadError, match="503"):
        get(host, tmp_path)
    assert len(host.requests) == 3


def test_other_digest_than_the_known_one_is_refused(host, tmp_path):
    with pytest.raises(DownloadError, match=r"SHA-256 .* not 00ff"):
        get(host, tmp_path, sha256="00ff")
    assert not (tmp_path / "a.npz").exists()
    assert (tmp_path / "a.npz.part").stat().st_size == 0


def test_web_page_instead_of_the_file_is_refused(host, tmp_path):
    host.content = b"<html>moved</html>"
    with pytest.raises(DownloadError, match=r"not an \.npz file"):
        get(host, tmp_path)


def test_second_download_of_the_same_file_is_refused(host, tmp_path):
    with (tmp_path / "a.npz.part").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="by another process"):
            get(host, tmp_path)


def test_full_disk_is_named(host, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"no space is left.*200,\d+ bytes are still to come"):
        get(host, tmp_path)


def test_dataset_is_its_training_and_its_validation_file(host, tmp_path):
    paths = download("cube-double-play", tmp_path, addresses=[host.address])
    names = ["cube-double-play-v0.npz", "cube-double-play-v0-val.npz"]
    assert [path.name for path in paths] == names
    assert [path for path, _ in host.requests] == [f"/{name}" for name in names]


def test_d4rl_dataset_is_one_file_under_its_own_name(host, tmp_path):
    host.content = hdf5_bytes()
    (path,) = download("pen-human-v1", tmp_path, addresses=[host.address])
    assert path == tmp_path / "pen-human-v1.hdf5"
    assert host.requests == [("/hand_dapg_v1/pen-human-v1.hdf5", None)]


def test_page_instead_of_a_d4rl_file_is_refused(host, tmp_path):
    host.content = b"<html>moved</html>"
    with pytest.raises(DownloadError, match="not an HDF5 file"):
        download("pen-human-v1", tmp_path, addresses=[host.address])


def test_every_d4rl_dataset_has_an_address():
    files = yaml.safe_load((configs_root() / "datasets.yaml").read_text())["d4rl"]["files"]
    assert files.keys() == {task.dataset for task in all_tasks() if task.suite == "d4rl"}


def test_offline_takes_what_is_there_and_asks_nobody(host, tmp_path):
    settings = {"addresses": [host.address], "pause": 0.0}
    paths = download("cube-double-play", tmp_path, **settings)
    host.requests.clear()
    assert download("cube-double-play", tmp_path, **settings, offline=True) == paths
    assert host.requests == []


def test_offline_names_each_missing_file_its_address_and_its_place(host, tmp_path):
    (tmp_path / "cube-double-play-v0.npz").write_bytes(host.content)
    with pytest.raises(DownloadError) as error:
        download("cube-double-play", tmp_path, addresses=[host.address], offline=True)
    missing = "cube-double-play-v0-val.npz"
    assert f"{host.address.format(file=missing)}\n    to {tmp_path / missing}" in str(error.value)
    assert "v0.npz" not in str(error.value)
    assert host.requests == []


def test_offline_refuses_a_file_that_has_changed(host, tmp_path):
    settings = {"addresses": [host.address], "pause": 0.0}
    path = download("cube-double-play", tmp_path, **settings)[1]
    path.write_bytes(npz_bytes(1))
    with pytest.raises(DownloadError, match=r"v0-val\.npz: the SHA-256 is"):
        download("cube-double-play", tmp_path, **settings, offline=True)
