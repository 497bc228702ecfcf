"""Streaming pixels, against the reference's method in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numcodecs.zstd import Zstd

from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import open_store
from deflow_vision.datasets.transitions import Transitions
from deflow_vision.timing.feeds import STACK, pixel_feed
from deflow_vision.timing.figures import Figure, Goal, Sample, more
from deflow_vision.timing.settings import Settings
from deflow_vision.timing.stores import pixel_store
from deflow_vision.timing.turns import alone, peak_memory

BATCH, PADDING = 256, 3


class Streaming(NamedTuple):
    """What streaming took.

    Attributes:
        rate: transitions a second.
        memory: GB, at most.
        encoded, decoded: kB read and kB decoded a transition.
        decoding: share of the processor's time.
    """

    rate: float
    memory: float
    encoded: float
    decoded: float
    decoding: float


def time_streaming(settings: Settings, folder: Path) -> Iterator[Figure]:
    """Rows of batches of 256 stacks of three frames, augmented, and of the memory they take."""
    size = settings.stream_frames
    store = pixel_store(folder / f"frames-{size}.zarr", size)
    ours: list[Streaming] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(max(1, settings.rounds // 2)):
        theirs.append(alone(reference, store, settings.seconds))
        ours.append(alone(stream, store, settings.seconds))
    rate, basis = Sample(tuple(turn.rate for turn in ours), "transitions/s"), "the reference's way"
    against = Sample(tuple(turn[0] for turn in theirs), "transitions/s")
    last = ours[-1]
    yield Figure(
        "streaming",
        f"streaming pixels, batch {BATCH}, {size:,} frames",
        rate,
        against,
        f"{basis}, in memory, one thread of NumPy",
        more(rate, against),
        Goal(6),
        f"{last.encoded:.1f} kB read and {last.decoded:.1f} decoded a transition, "
        f"{last.decoding:.0%} of the processor's time",
    )
    memory = Sample(tuple(turn.memory for turn in ours), "GB")
    held = Sample(tuple(turn[1] for turn in theirs), "GB")
    yield Figure("streaming", "memory of streaming pixels", memory, held, basis, more(memory, held))


class _Nothing(NamedTuple):
    """The noises of no agent."""

    none: Any


def stream(store: Path, seconds: float) -> Streaming:
    """Feed batches as training does, to an agent whose noises cost nothing."""
    agent: Any = SimpleNamespace(sample_noises=lambda *_: _Nothing(torch.zeros(0)))
    feed = pixel_feed(store, BATCH, agent)
    feed(0)
    read, processor, start, step = _bytes_read(), time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step += 1
        feed(step)
    wall = time.perf_counter() - start
    processor, read = time.process_time() - processor, _bytes_read() - read
    memory = peak_memory()
    feed.close()

    files = sorted((store / "train/observations/c").rglob("0/0/0"))[:32]
    blocks = [file.read_bytes() for file in files if file.is_file()]
    start = time.perf_counter()
    lengths = [len(Zstd().decode(block)) for block in blocks]
    a_byte = (time.perf_counter() - start) / sum(lengths)
    decoded = read * sum(lengths) / sum(map(len, blocks))
    transitions = step * BATCH
    return Streaming(
        rate=transitions / wall,
        memory=memory,
        encoded=read / transitions / 1e3,
        decoded=decoded / transitions / 1e3,
        decoding=decoded * a_byte / processor,
    )


def _bytes_read() -> int:
    """What this process has read from files, page cache or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def reference(store: Path, seconds: float) -> tuple[float, float]:
    """Transitions/s and GB of the reference's method, on frames of a store.

    Observations and next observations are in memory, each frame in both. A batch takes six gathers,
    two concatenations along the channels and, at every other batch on average, two crops. FQL's
    crop is compiled by XLA; NumPy's pad and a copy a sample take as long on this kind of machine.
    """
    split = open_store(store).train
    states = Transitions(split.episode_ends, 1).states(np.arange(split.num_transitions))
    frames = read_all(split.observations)
    observations, next_observations = frames[states], frames[states + 1]
    del frames
    lengths = np.diff(split.episode_ends, prepend=0) - 1
    starts = np.cumsum(lengths) - lengths
    rng = np.random.default_rng(0)

    def crop(images: np.ndarray, corners: np.ndarray) -> np.ndarray:
        edge = (PADDING, PADDING)
        padded = np.pad(images, ((0, 0), edge, edge, (0, 0)), mode="edge")
        height, width = images.shape[1:3]
        return np.stack(
            [
                image[y : y + height, x : x + width]
                for image, (y, x) in zip(padded, corners, strict=True)
            ]
        )

    def batch() -> tuple[np.ndarray, np.ndarray]:
        rows = rng.integers(len(observations), size=BATCH)
        first = starts[np.searchsorted(starts, rows, side="right") - 1]
        before = [np.maximum(rows - back, first) for back in reversed(range(STACK))]
        stack = np.concatenate([observations[i] for i in before], axis=-1)
        following = [observations[i] for i in before[1:]] + [next_observations[rows]]
        next_stack = np.concatenate(following, axis=-1)
        if rng.random() < 0.5:
            corners = rng.integers(2 * PADDING + 1, size=(BATCH, 2))
            stack, next_stack = crop(stack, corners), crop(next_stack, corners)
        return stack, next_stack

    batch()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        batch()
        count += BATCH
    return count / (time.perf_counter() - start), peak_memory()
