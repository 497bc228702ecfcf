"""A file over HTTP into a `.part` file: locked, and resumed where it broke off."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from deflow_vision.types import UserError

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_ATTEMPTS = 3  # in a row that get no further, at one address


class DownloadError(UserError):
    """No address gave the file, or what there is is not it."""


def transfer(
    url: str, part: Path, pause: float, timeout: float, whole: Callable[[Path], bool]
) -> None:
    """Fill `part` from one address, trying again for as long as more comes than ever before.

    Args:
        url: the address.
        part: a file that is there; what it holds is gone on with, if it came from this address.
        pause: seconds before the second attempt; longer before further ones.
        timeout: seconds without a byte after which a connection counts as broken off.
        whole: tells a whole file from a part of it, where the server does not say its length.

    Raises:
        OSError: the disk is full, or three attempts in a row got no further.
        http.client.HTTPException: likewise.
    """
    barren, furthest = 0, part.stat().st_size
    while True:
        failure: Exception
        try:
            if _append(url, part, timeout, whole):
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
        # Not against the attempt before: begun anew after a wrong answer, it always comes further.
        barren = 0 if part.stat().st_size > furthest else barren + 1
        furthest = max(furthest, part.stat().st_size)
        if barren >= _ATTEMPTS:
            raise failure
        _log.warning("%s: %s; going on after %d bytes", url, failure, part.stat().st_size)
        time.sleep(pause * max(1, barren))


def _append(url: str, part: Path, timeout: float, whole: Callable[[Path], bool]) -> bool:
    """Ask for the bytes that `part` lacks and append them; whether it is complete then."""
    size = part.stat().st_size
    state = _state(part)
    request = urllib.request.Request(url)
    if size and state.get("url") == url and state.get("version"):
        # If-Range: a file that has changed comes whole, instead of a rest that does not fit.
        request.add_header("Range", f"bytes={size}-")
        request.add_header("If-Range", state["version"])
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if str(error.headers.get("Content-Range", "")).endswith(f"/{size}"):
            return True
        forget(part)  # the file there is shorter by now
        return False
    with response:
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        start = 0
        if response.status == http.client.PARTIAL_CONTENT:
            offered = str(response.headers.get("Content-Range", ""))
            if not offered.startswith(f"bytes {size}-") or version not in (
                None,
                state.get("version"),
            ):
                forget(part)  # a server that does not know If-Range sends a rest that does not fit
                return False
            start, version = size, state.get("version")
        length = response.headers.get("Content-Length")
        if length is not None and int(length) > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, f"{int(length):,} bytes are still to come")
        state_file(part).write_text(json.dumps({"url": url, "version": version}))
        with part.open("r+b") as stream, _progress(part.stem, start, length) as advance:
            stream.truncate(start)
            stream.seek(start)
            # read1 gives what has come, which a connection that stalls then does not take along.
            while block := response.read1(_BLOCK_BYTES):
                stream.write(block)
                advance(len(block))
    return whole(part) if length is None else part.stat().st_size == start + int(length)


def forget(part: Path) -> None:
    """Empty `part`, so that the next attempt begins anew."""
    state_file(part).unlink(missing_ok=True)
    part.write_bytes(b"")


@contextlib.contextmanager
def lock(part: Path) -> Iterator[None]:
    """Make `part` and hold it alone; the system frees the lock of a process that dies.

    Raises:
        DownloadError: another process holds it.
    """
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


def state_file(part: Path) -> Path:
    """Where the address and the version of what `part` holds are kept."""
    return part.with_suffix(".part.json")


def _state(part: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(state_file(part).read_text())
    except (FileNotFoundError, ValueError):  # a crash may have torn it: begin anew
        return {}
    return state
