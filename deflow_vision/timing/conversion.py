"""Conversion of OGBench's files into stores."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numcodecs.zstd import Zstd

from deflow_vision.datasets.convert import convert
from deflow_vision.datasets.relabel import environment_of, read_goals
from deflow_vision.datasets.schema import ZSTD_LEVEL, digest_of, read_all
from deflow_vision.datasets.store import open_store
from deflow_vision.timing.figures import Figure, Goal, Sample, more
from deflow_vision.timing.settings import Settings
from deflow_vision.timing.stores import DATASET, SAMPLE, npz
from deflow_vision.timing.turns import alone, peak_memory

FRAME_BYTES = 64 * 64 * 3
BLOCK = 64
"""Frames of a block, as `StoreWriter` has it."""


def time_conversion(settings: Settings, folder: Path) -> Iterator[Figure]:
    """Rows of a plain and of a compressed file, and of what bounds them."""
    count, unit = settings.convert_frames, "frames/s"
    encoding, starting = alone(time_encoding), alone(time_starting)
    goals = {False: Goal(1), True: Goal(0.8)}
    for compressed, goal in goals.items():
        place = folder / ("deflated" if compressed else "plain")
        source = npz(place / f"{DATASET}.npz", count, compressed=compressed)
        rate, memory, smaller = alone(convert_once, source)
        inflating = alone(time_inflating, source) if compressed else 0.0
        bound = 1 / encoding + (1 / inflating / len(os.sched_getaffinity(0)) if compressed else 0)
        measured = Sample((rate,), unit)
        against = Sample((inflating if compressed else 20_000.0,), unit)
        kind = "a compressed" if compressed else "an"
        yield Figure(
            "conversion",
            f"converting {kind} .npz of {count:,} frames",
            measured,
            against,
            "zlib alone" if compressed else "asked",
            more(measured, against),
            goal,
            f"{memory:.2f} GB; {starting:.1f} s of it OGBench's start; what it must do on all "
            f"cores (zstd, digests{', zlib' if compressed else ''}): {1 / bound:,.0f} {unit}",
        )
    size, wanted = Sample((smaller,), "times smaller than its frames"), Sample((6.0,), "times")
    yield Figure("conversion", "the store", size, wanted, "asked", more(size, wanted), Goal(1))


def convert_once(source: Path) -> tuple[float, float, float]:
    """Frames/s, GB of memory at most, and how often the store goes into the frames."""
    # Nothing is removed before the end: ext4 makes files slowly for a minute after.
    path = Path(tempfile.mkdtemp(dir=source.parent)) / "converted.zarr"
    with source.open("rb") as file:  # into the page cache
        while file.read(1 << 20):
            pass
    start = time.perf_counter()
    convert(source, path)
    seconds = time.perf_counter() - start
    observations = open_store(path).train.observations
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return observations.shape[0] / seconds, peak_memory(), observations.nbytes / size


def time_encoding(rounds: int = 10) -> float:
    """Frames/s of what a store's blocks take at least: zstd and digests, on all cores."""
    frames = read_all(open_store(SAMPLE).train.observations)
    blocks = [frames[i : i + BLOCK] for i in range(0, len(frames) - BLOCK + 1, BLOCK)] * rounds

    def encode(block: np.ndarray) -> None:
        digest_of(Zstd(ZSTD_LEVEL, checksum=True).encode(block))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start = time.perf_counter()
        list(pool.map(encode, blocks))
        return len(blocks) * BLOCK / (time.perf_counter() - start)


def time_starting() -> float:
    """Seconds, whatever the file's size, that a conversion waits for the goals."""
    start = time.perf_counter()
    read_goals(environment_of(DATASET))
    return time.perf_counter() - start


def time_inflating(source: Path) -> float:
    """Frames/s of zlib alone, on the file's observations."""
    with zipfile.ZipFile(source) as archive, source.open("rb") as file:
        info = archive.getinfo("observations.npy")
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
        file.seek(int(name) + int(extra), 1)
        content = file.read(info.compress_size)
    inflate, size, start = zlib.decompressobj(-zlib.MAX_WBITS), 0, time.perf_counter()
    for first in range(0, len(content), 1 << 18):
        size += len(inflate.decompress(content[first : first + (1 << 18)]))
    return size / FRAME_BYTES / (time.perf_counter() - start)
