from __future__ import annotations

import fcntl
import hashlib
import io
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from deflow_vision.datasets.download import DownloadError, download, fetch


def npz_bytes() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, observations=np.arange(50_000, dtype=np.float32))
    return stream.getvalue()


class Host(ThreadingHTTPServer):
    """Serves `content` under any name; breaks off after `break_after` bytes, once."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.etag = '"one"'
        self.break_after: int | None = None
        self.status = 200
        self.requests: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{{file}}"


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host, start = self.server, 0
        asked = self.headers.get("Range")
        host.requests.append((self.path, asked))
        if host.status != 200:
            self.send_error(host.status)
            return
        if asked and self.headers.get("If-Range") == host.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= len(host.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(host.content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(host.content) - start))
        self.send_header("ETag", host.etag)
        self.end_headers()
        stop, host.break_after = host.break_after, None
        self.wfile.write(host.content[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(npz_bytes()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(host, folder, **changes):
    arguments = {"addresses": [host.address], "sha256": None, "pause": 0.0} | changes
    return fetch("a.npz", folder, **arguments)


def test_download_that_breaks_off_is_resumed_where_it_stopped(host, tmp_path):
    host.break_after = 100_000
    path = get(host, tmp_path)
    assert path.read_bytes() == host.content
    assert host.requests == [("/a.npz", None), ("/a.npz", "bytes=100000-")]


def test_digest_is_kept_beside_the_file_and_nothing_else_is_left(host, tmp_path):
    get(host, tmp_path)
    digest = hashlib.sha256(host.content).hexdigest()
    assert (tmp_path / "a.npz.sha256").read_text() == f"{digest}  a.npz\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.npz.sha256"]


def test_next_run_goes_on_with_a_partial_file(host, tmp_path):
    host.break_after = 100_000
    host.status = 200
    (tmp_path / "a.npz.part").write_bytes(host.content[:300])
    (tmp_path / "a.npz.part.json").write_text(
        f'{{"url": "{host.address.format(file="a.npz")}", "version": "\\"one\\""}}'
    )
    assert get(host, tmp_path).read_bytes() == host.content
    assert host.requests[0] == ("/a.npz", "bytes=300-")


def test_complete_partial_file_is_taken_as_it_is(host, tmp_path):
    (tmp_path / "a.npz.part").write_bytes(host.content)
    (tmp_path / "a.npz.part.json").write_text(
        f'{{"url": "{host.address.format(file="a.npz")}", "version": "\\"one\\""}}'
    )
    assert get(host, tmp_path).read_bytes() == host.content


def test_file_that_changed_meanwhile_comes_whole(host, tmp_path):
    (tmp_path / "a.npz.part").write_bytes(b"of an older version")
    (tmp_path / "a.npz.part.json").write_text(
        f'{{"url": "{host.address.format(file="a.npz")}", "version": "\\"zero\\""}}'
    )
    assert get(host, tmp_path).read_bytes() == host.content


def test_present_file_is_not_downloaded_again(host, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"mine")
    assert get(host, tmp_path).read_bytes() == b"mine"
    assert host.requests == []


def test_next_address_is_tried_when_one_has_no_such_file(host, tmp_path):
    nowhere = "http://127.0.0.1:9/{file}"
    assert get(host, tmp_path, addresses=[nowhere, host.address]).is_file()


def test_error_names_every_address_and_the_place_for_the_file(host, tmp_path):
    host.status = 404
    with pytest.raises(DownloadError) as error:
        get(host, tmp_path)
    for text in (host.address.format(file="a.npz"), "404", str(tmp_path / "a.npz")):
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


def test_dataset_of_another_suite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not one of OGBench's"):
        download("antmaze-umaze-v2", tmp_path)
