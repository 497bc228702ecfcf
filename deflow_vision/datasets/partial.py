"""The folder in which a store grows until it is complete: locked, and good to go on from.

`<path>.partial/` holds `store/`, the arrays; `progress.npz`, how much of them is certain, with the
rows that fill no block yet; and `lock`. Each progress is written aside, synced and renamed, after
the blocks that it counts on: what a killed writer wrote beyond it is cut off again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from deflow_vision.datasets.address import refuse_address
from deflow_vision.datasets.npy import Member
from deflow_vision.datasets.schema import StoreError, block_file
from deflow_vision.files import refuse_links

_FACTS = "facts"


class DamagedSourceError(StoreError):
    """What a store is made from is damaged: what was written of it is not to be gone on with."""


@dataclass(frozen=True)
class Progress:
    """What a writer had done when it last recorded it.

    Attributes:
        job: what the whole is made of, JSON values.
        splits: split -> {"episodes": so many, "states": so many, ...}.
        rows: "split/array" -> its rows after the last whole block.
    """

    job: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, np.ndarray]


class Partial:
    """The unfinished store of a path.

    Args:
        path: where the store goes when it is complete.

    Attributes:
        folder: `<path>.partial`.
        store: the unfinished arrays in it.
    """

    def __init__(self, path: Path) -> None:
        refuse_address(path)
        self._path = path
        self.folder = path.with_name(f"{path.name}.partial")
        self.store = self.folder / "store"
        self._progress = self.folder / "progress.npz"
        self._lock: IO[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, "record")
        self._saved: Future[None] | None = None

    def lock(self) -> None:
        """Make the folder and hold it alone; the system frees the lock of a process that dies.

        Raises:
            StoreError: another process holds it.
            UserError: there are symbolic links in it, by which things elsewhere would be removed.
        """
        if self.folder.is_symlink():
            raise self.cannot_go_on("it is a symbolic link.")
        refuse_links(self.folder)
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / "lock"
            try:
                stream = file.open("ab")
            except FileNotFoundError:  # the holder before has just removed the folder
                continue
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                    self._lock = stream
                    return
            except BlockingIOError as error:
                stream.close()
                raise StoreError(
                    f"{self._path} is being written by another process: wait for it, or give "
                    "another path."
                ) from error
            except FileNotFoundError:
                pass
            stream.close()

    def unlock(self) -> None:
        """Let others hold the folder, when what is being saved is."""
        self._thread.shutdown()
        if self._lock is not None:
            self._lock.close()

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def has_progress(self) -> bool:
        """Whether there is something to go on from."""
        return self._progress.is_file() and self.store.is_dir()

    def load(self, job: Mapping[str, Any]) -> Progress | None:
        """The recorded progress of this very job. Files that it does not count on are removed.

        The arrays' descriptions are among them: make the arrays anew, and `cut` each.

        Raises:
            StoreError: it is another job's, or damaged.
        """
        if not self.has_progress():
            shutil.rmtree(self.store, ignore_errors=True)
            return None
        try:
            rows = self._read_progress()
            facts = json.loads(rows.pop(_FACTS).tobytes())
            facts["job"], [{**split}["episodes"] for split in facts["splits"].values()]
        except (
            *(OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, RuntimeError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            raise self.cannot_go_on(f"{self._progress.name} is damaged: {error!r}") from error
        differences = _differences(facts["job"], job)
        if differences:
            episodes = sum(split["episodes"] for split in facts["splits"].values())
            raise self.cannot_go_on(
                f"its {episodes} episodes are of another job.\n" + "\n".join(differences)
            )
        for file in self.store.rglob("*"):
            # zarr writes these under another name first: "zarr.<random>.partial".
            if file.name == "zarr.json" or file.suffix == ".partial":
                file.unlink()
        for folder in self.store.iterdir():
            if folder.name not in facts["splits"]:
                shutil.rmtree(folder)
        return Progress(facts["job"], facts["splits"], rows)

    def cut(self, array: Any, blocks: int) -> None:
        """Remove the files of an array that are none of its first blocks.

        Args:
            array: a `zarr.Array` in the store.
            blocks: so many are certain.

        Raises:
            StoreError: one of them is missing.
        """
        directory = self.store / array.path
        certain = [block_file(array, directory, i) for i in range(blocks)]
        for file in certain:
            if not file.is_file() or not file.stat().st_size:
                raise self.cannot_go_on(f"{file.relative_to(self.store)} is missing.")
        for file in {*directory.joinpath("c").rglob("*")}.difference(certain):
            if file.is_file():
                file.unlink()

    def save(self, progress: Progress, written: Sequence[Path]) -> None:
        """Begin to record progress: in one piece, and for good; a disk may take seconds.

        Args:
            progress: what there is.
            written: files of the store that it counts on and no progress before did.

        Raises:
            OSError: the time before it failed, see `wait`.
        """
        self.wait()
        self._saved = self._thread.submit(self._save, progress, written)

    def busy(self) -> bool:
        """Whether progress is being recorded now."""
        return self._saved is not None and not self._saved.done()

    def wait(self) -> None:
        """Wait for what is being recorded.

        Raises:
            OSError: it cannot be, as where the disk is full.
        """
        if self._saved is not None:
            self._saved.result()

    def publish(self) -> None:
        """Move the complete store to its place, and remove the rest."""
        self.store.rename(self._path)
        sync(self._path.parent)
        self.remove()

    def explain(self, error: BaseException) -> None:
        """Raise a `StoreError` that says what to do, if the error is that the disk is full."""
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise StoreError(
                f"{self._path}: no space is left on the disk. Free some, and run it again"
                + (" to go on." if self.has_progress() else ".")
            ) from error

    def _read_progress(self) -> dict[str, np.ndarray]:
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self._progress))
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed")  # ours is not; it could grow without bound
            members = {
                name: Member(stack, archive, name)
                for name in (file.removesuffix(".npy") for file in archive.namelist())
            }
            return {name: member.read(member.shape[0]) for name, member in members.items()}

    def _save(self, progress: Progress, written: Sequence[Path]) -> None:
        for file in written:
            sync(file)
        facts = json.dumps({"job": progress.job, "splits": progress.splits}).encode()
        arrays: dict[str, Any] = {_FACTS: np.frombuffer(facts, np.uint8), **progress.rows}
        part = self._progress.with_suffix(".part")
        try:
            with part.open("wb") as stream:
                np.savez(stream, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:  # a full disk: what is there of it is in the way
            part.unlink(missing_ok=True)
            raise
        part.replace(self._progress)
        sync(self.folder)

    def cannot_go_on(self, reason: str) -> StoreError:
        """The error of what another run left and this one cannot use, with the way out."""
        return StoreError(
            f"{self.folder} cannot be gone on with: {reason}\n"
            "Delete that folder to start over, or give another path."
        )


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if before == now else [f"  {name}: it has {before!r}, you ask for {now!r}"]


def refuse_existing(path: Path) -> None:
    """Raise a `StoreError` if there is something at `path`, or it is an address."""
    partial = Partial(path)
    if path.exists():
        if not partial.store.exists():  # of a writer killed between its last two steps
            partial.remove()
        raise StoreError(f"{path} exists. Delete it first, or give another path.")
