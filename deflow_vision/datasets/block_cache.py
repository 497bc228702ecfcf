"""A folder of bounded size for blocks of stores that are far away, shared by processes and runs."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deflow_vision.datasets.schema import StoreError

_log = logging.getLogger(__name__)

_TALLY = "bytes"  # the file that is locked, and says how much the folder holds
_ROOM = 0.1  # of the bound, made at once: looking through the folder takes time


class BlockCache:
    """Files by store and name, at most `max_bytes` of them, temporary ones included.

    Room is made by removing the least recently read blocks of *other* stores. Those of the same
    store stay and, when the folder is full of them, new ones are not kept: each epoch reads every
    block once, so that the least recently read block is the next to be read, and keeping a share of
    the store saves that share of the requests.

    Args:
        folder: where; it is made if need be. Several processes may use it at once.
        max_bytes: the bound.

    Raises:
        StoreError: the folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._full: set[str] = set()  # stores that the whole folder belongs to
        self._broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._tally() as tally:
                _put(tally, self._shrink(max_bytes, keep=""))
        except OSError as error:
            raise StoreError(
                f"the cache folder {folder} cannot be written: {error.strerror or error}. Pass "
                "another one as --data.cache, or --data.cache-gib 0 to do without."
            ) from error

    def read(self, store: str, name: str) -> bytes | None:
        """A block, or None where it is not here.

        Args:
            store: what tells stores apart, a valid file name.
            name: of the block in the store, a valid file name.
        """
        path = self._folder / store / name
        try:
            value = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # removed meanwhile, or another person's
            os.utime(path)
        return value

    def write(self, store: str, name: str, value: bytes) -> None:
        """Keep a block if there is room; a disk that is full ends the keeping, with one warning."""
        if self._broken or store in self._full:
            return
        path = self._folder / store / name
        part = path.with_name(f"{name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            if not self._reserve(part, store, len(value)):
                self._full.add(store)
                return
            with part.open("r+b") as file:
                file.write(value)
            with self._tally():  # or a process that counts might miss it between its two names
                part.replace(path)
        except FileNotFoundError:
            return  # another process made room
        except OSError as error:
            self._broken = True
            _log.warning(
                "%s takes no more blocks (%s): reading on without keeping them",
                self._folder,
                error.strerror or error,
            )
            with suppress(OSError):
                part.unlink()

    def drop(self, store: str, name: str) -> bool:
        """Remove a block; whether it was there."""
        try:
            (self._folder / store / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _reserve(self, part: Path, store: str, size: int) -> bool:
        """Claim room for a block by a file of its size, which other processes count."""
        with self._tally() as tally:
            tally.seek(0)
            held = int(tally.read() or 0)
            if held + size > self._max_bytes:
                held = self._shrink(int((1 - _ROOM) * self._max_bytes) - size, keep=store)
            if held + size > self._max_bytes:
                _put(tally, held)
                return False
            with part.open("wb") as file:
                file.truncate(size)
            _put(tally, held + size)
        return True

    def _shrink(self, target: int, keep: str) -> int:
        """Remove blocks of all stores but `keep` until `target` bytes are left; what is left."""
        found = []
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= target:
                break
            if path.parent.name != keep:
                path.unlink(missing_ok=True)
                held -= size
        return held

    @contextmanager
    def _tally(self) -> Iterator[IO[str]]:
        with (self._folder / _TALLY).open("a+") as tally:
            fcntl.flock(tally, fcntl.LOCK_EX)
            yield tally


def _put(tally: IO[str], held: int) -> None:
    tally.seek(0)
    tally.truncate()
    tally.write(str(held))
