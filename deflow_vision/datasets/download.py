"""Downloads of OGBench's files: locked, resumed where they broke off, checked, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from deflow_vision.tasks import configs_root, resolve_dataset
from deflow_vision.types import UserError

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 3  # in a row that bring nothing, at one address


class DownloadError(UserError):
    """No address gave the file, or what came is not it."""


def download(
    dataset: str, folder: Path, *, addresses: Sequence[str] | None = None, pause: float = 2.0
) -> list[Path]:
    """Download the training and the validation file of an OGBench dataset.

    A file that is there already is kept; one that is there in part is gone on with.

    Args:
        dataset: the dataset's name, with or without its version.
        folder: where the files go.
        addresses: where to look, in order, each with `{file}`; by default `configs/datasets.yaml`.
        pause: seconds before the second attempt at an address; longer before further ones.

    Returns:
        The paths of `<dataset>.npz` and `<dataset>-val.npz`.

    Raises:
        UserError: no OGBench dataset has that name.
        DownloadError: another process downloads it, no address gave it, the disk is full, or it
            is not the file that was expected.
    """
    task = resolve_dataset(dataset)
    if task.suite != "ogbench":
        raise UserError(f"{task.dataset} is not one of OGBench's datasets, which are downloaded.")
    table: dict[str, Any] = yaml.safe_load((configs_root() / "datasets.yaml").read_text())
    files = [f"{task.dataset}.npz", f"{task.dataset}-val.npz"]
    return [
        fetch(
            file,
            folder,
            addresses or table["addresses"],
            sha256=table["sha256"].get(file),
            pause=pause,
        )
        for file in files
    ]


def fetch(
    file: str, folder: Path, addresses: Sequence[str], *, sha256: str | None, pause: float = 2.0
) -> Path:
    """Download one .npz file; its digest is kept in `<file>.sha256`. Arguments as `download`."""
    target = folder / file
    if target.is_file():
        _log.info("%s is there already", target)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file}.part"
    failures = []
    with _lock(part):
        for address in addresses:
            url = address.format(file=file)
            try:
                _fetch_from(url, part, pause)
                _check(part, sha256)
            except (OSError, http.client.HTTPException, DownloadError) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise DownloadError(f"{part}: no space is left on the disk: {error}") from error
                failures.append(f"  {url}: {error}")
                continue
            part.rename(target)
            _state_file(part).unlink(missing_ok=True)
            return target
    raise DownloadError(
        "\n".join(
            [
                f"{file} could not be downloaded:",
                *failures,
                f"Run the same command again to go on, or place the file at {target} by hand.",
            ]
        )
    )


def _fetch_from(url: str, part: Path, pause: float) -> None:
    """Fill `part` from one address, trying again for as long as something comes."""
    barren = 0
    while True:
        before = part.stat().st_size
        failure: Exception
        try:
            if _append(url, part):
                return
            failure = http.client.HTTPException("the connection was closed early")
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise
            failure = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            failure = error
        barren = 0 if part.stat().st_size > before else barren + 1
        if barren >= _ATTEMPTS:
            raise failure
        _log.warning("%s: %s; going on after %d bytes", url, failure, part.stat().st_size)
        time.sleep(pause * max(1, barren))


def _append(url: str, part: Path) -> bool:
    """Ask for the bytes that `part` lacks and append them; whether it is complete then."""
    size = part.stat().st_size
    state = json.loads(_state_file(part).read_text()) if _state_file(part).is_file() else {}
    request = urllib.request.Request(url)
    if size and state.get("url") == url and state.get("version"):
        # If-Range: a file that has changed comes whole, instead of a rest that does not fit.
        request.add_header("Range", f"bytes={size}-")
        request.add_header("If-Range", state["version"])
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return str(error.headers.get("Content-Range", "")).endswith(f"/{size}")
    with response:
        start = size if response.status == http.client.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        if length is not None and int(length) > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, f"{int(length):,} bytes are still to come")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        _state_file(part).write_text(json.dumps({"url": url, "version": version}))
        with part.open("r+b") as stream, _progress(part.stem, start, length) as advance:
            stream.truncate(start)
            stream.seek(start)
            while block := response.read(_BLOCK_BYTES):
                stream.write(block)
                advance(len(block))
    return length is None or part.stat().st_size == start + int(length)


def _check(part: Path, sha256: str | None) -> None:
    """Refuse what is not the file, and empty it, so that the next attempt begins anew."""
    with part.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 is not None and digest != sha256:
        problem = f"what came has the SHA-256 {digest}, not {sha256}"
    elif not zipfile.is_zipfile(part):
        problem = "what came is not an .npz file"
    else:
        part.with_suffix(".sha256").write_text(f"{digest}  {part.stem}\n")
        return
    _state_file(part).unlink(missing_ok=True)
    part.write_bytes(b"")
    raise DownloadError(problem)


@contextlib.contextmanager
def _lock(part: Path) -> Iterator[None]:
    """Hold `part` alone; the system frees the lock of a process that dies."""
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"{part} is being downloaded by another process.") from error
        yield


@contextlib.contextmanager
def _progress(title: str, start: int, length: str | None) -> Iterator[Any]:
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(
            title, completed=start, total=None if length is None else start + int(length)
        )
        yield lambda count: progress.advance(bar, count)


def _state_file(part: Path) -> Path:
    """Where the address and the version of what `part` holds are kept."""
    return part.with_suffix(".part.json")
