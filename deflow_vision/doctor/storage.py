"""Disks, and what the system grants a process."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deflow_vision.doctor.rows import GIB, Row

_PIECE = 8 << 20
_PIECES = 16
_SECONDS = 3.0
_SLOW = 30e6
_LEAST_FREE, _FREE = 1 * GIB, 10 * GIB
_LEAST_FILES, _FILES = 256, 1024
_SHM = 256 << 20


@dataclass(frozen=True)
class Disk:
    """Where folders lie.

    Attributes:
        folders: those on it.
        free: bytes free.
        write: bytes a second, written and brought to the disk.
        read: bytes a second, without the page cache where the system drops it.
        problem: why nothing can be written there.
    """

    folders: tuple[str, ...]
    free: int
    write: float = 0.0
    read: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Limits:
    """What the system grants.

    Attributes:
        files: open files of a process, as it is and at most.
        shm: bytes of /dev/shm; None where there is none.
    """

    files: tuple[int, int]
    shm: int | None


def look_disks(folders: Sequence[str]) -> list[Disk]:
    """Measure each disk that one of the folders lies on, or will lie on."""
    disks: dict[int, tuple[Path, list[str]]] = {}
    for folder in folders:
        place = existing(Path(folder))
        disks.setdefault(place.stat().st_dev, (place, []))[1].append(folder)
    return [measure(place, names) for place, names in disks.values()]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def measure(place: Path, names: Sequence[str]) -> Disk:
    """Write up to 128 MiB for up to three seconds, and read them again.

    The file has no name from the start (or loses it at once, where the system knows no such files):
    nothing of it is left, however this process ends.

    Args:
        place: a folder that is there.
        names: what to call it.
    """
    free = shutil.disk_usage(place).free
    if free < _LEAST_FREE:  # do not fill what is nearly full
        return Disk(tuple(names), free)
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            write = _write(file.fileno())
            read = _read(file.fileno())
    except OSError as error:
        return Disk(tuple(names), free, problem=f"{place}: {error.strerror or error}")
    return Disk(tuple(names), free, write, read)


def _write(file: int) -> float:
    piece = os.urandom(_PIECE)  # no file system can compress it
    start, written = time.perf_counter(), 0
    while written < _PIECES * _PIECE and time.perf_counter() - start < _SECONDS:
        written += os.write(file, piece)
        os.fsync(file)
    return written / (time.perf_counter() - start)


def _read(file: int) -> float:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(file, 0, os.SEEK_SET)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS and (piece := os.read(file, _PIECE)):
        count += len(piece)
    return count / (time.perf_counter() - start)


def judge_disks(facts: Sequence[Disk]) -> list[Row]:
    """A row a disk."""
    return [_judge_disk(disk) for disk in facts]


def _judge_disk(disk: Disk) -> Row:
    name = f"disk of {', '.join(disk.folders)}"
    free = f"{disk.free / GIB:.1f} GiB free"
    elsewhere = "put stores elsewhere (DEFLOW_DATA), and runs (--run-dir)"
    if disk.problem:
        return Row(name, "fail", disk.problem, f"make it writable, or {elsewhere}")
    if disk.free < _LEAST_FREE:
        return Row(name, "fail", free, f"free some: a run's checkpoints need more; or {elsewhere}")
    found = f"{free}, writes {disk.write / 1e6:,.0f} MB/s, reads {disk.read / 1e6:,.0f} MB/s"
    if disk.free < _FREE:
        remedy = f"a million frames take 2 GB and more: free some, or {elsewhere}"
        return Row(name, "warn", found, remedy)
    if min(disk.write, disk.read) < _SLOW:
        remedy = f"as slow as a network disk: checkpoints and streams wait for it; {elsewhere}"
        return Row(name, "warn", found, remedy)
    return Row(name, "ok", found)


def look_limits() -> Limits:
    """Read the limits of this process."""
    shm = Path("/dev/shm")
    return Limits(
        files=resource.getrlimit(resource.RLIMIT_NOFILE),
        shm=shutil.disk_usage(shm).total if shm.is_dir() else None,
    )


def judge_limits(facts: Limits) -> list[Row]:
    """A row for open files, one for shared memory."""
    soft, hard = facts.files
    unlimited = resource.RLIM_INFINITY
    name, most = "open files", "unlimited" if hard == unlimited else str(hard)
    found = f"{'unlimited' if soft == unlimited else soft} in a process, at most {most}"
    if soft == unlimited or soft >= _FILES:
        files = Row(name, "ok", found)
    else:
        wanted = _FILES if hard == unlimited else min(_FILES, hard)
        remedy = f"ulimit -n {wanted} before a run; stores and environments take files"
        files = Row(name, "fail" if soft < _LEAST_FILES else "warn", found, remedy)
    return [files, _judge_shm(facts.shm)]


def _judge_shm(size: int | None) -> Row:
    name = "shared memory"
    found = "no /dev/shm" if size is None else f"/dev/shm has {size / 2**20:,.0f} MiB"
    if size is not None and size >= _SHM:
        return Row(name, "ok", found)
    remedy = "several GPUs of one machine exchange gradients through it: docker run --shm-size=1g"
    return Row(name, "warn", found, remedy)
