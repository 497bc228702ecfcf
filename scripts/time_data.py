"""Time the data layer on this machine: `python scripts/time_data.py [--help]`."""

import multiprocessing
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from numcodecs.zstd import Zstd
from rich.console import Console
from rich.table import Table

from deflow_vision.datasets.convert import convert
from deflow_vision.datasets.draws import Epochs, Uniform
from deflow_vision.datasets.mixing import measure_mixing
from deflow_vision.datasets.relabel import environment_of, read_goals
from deflow_vision.datasets.sampler import make_sampler
from deflow_vision.datasets.schema import ZSTD_LEVEL, digest_of, read_all, read_rows
from deflow_vision.datasets.store import Split, StoreWriter, open_store
from deflow_vision.datasets.transitions import Transitions

SAMPLE = Path(__file__).parents[1] / "data/samples/visual-cube-double-play-v0.zarr"
DATASET = "visual-cube-double-play-v0"
BATCH, STACK, PADDING = 256, 3, 3
Part = Literal["stream", "convert", "sampling", "mixing"]


def main(
    parts: tuple[Part, ...] = ("stream", "convert", "sampling", "mixing"),
    folder: Path | None = None,
    frames: tuple[int, ...] = (20_000, 500_000),
    convert_frames: int = 100_000,
    transitions: tuple[int, ...] = (10_000, 1_000_000, 10_000_000),
    seconds: float = 20.0,
    keep: bool = False,
) -> None:
    """Print what streaming, conversion and sampling take, as ratios to what they are held against.

    Frames are those of the committed sample, over and over, each time in other colours.

    Args:
        parts: what to time.
        folder: where the data for it are written; a temporary folder by default.
        frames: sizes of the pixel stores that are streamed; the reference's method runs in memory
            on as many as the first.
        convert_frames: frames of the files that are converted.
        transitions: sizes of the state stores that are sampled.
        seconds: how long each is timed.
        keep: whether what was written stays in `folder`, for another run.
    """
    place = Path(tempfile.mkdtemp(prefix="time-data-")) if folder is None else folder
    place.mkdir(parents=True, exist_ok=True)
    table = Table("what", "measured", "held against", "ratio", title="the data layer")
    try:
        if "stream" in parts:
            add_streaming(table, place, frames, seconds)
        if "convert" in parts:
            add_conversion(table, place, convert_frames)
        if "sampling" in parts:
            add_sampling(table, place, transitions, seconds)
        if "mixing" in parts:
            add_mixing(table)
    finally:
        if not keep:
            shutil.rmtree(place)
    Console(width=140).print(table)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory() -> float:
    """The most resident memory that this process has had, in GB, with all of its libraries.

    Not `ru_maxrss`, which begins at what the process that started this one held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":\t") for line in lines)["VmHWM"].split()[0]) * 1024 / 1e9


# ------------------------------------------------------------------------------------ streaming


class Streaming(NamedTuple):
    """What streaming took.

    Attributes:
        rate: transitions a second.
        memory: GB, at most.
        encoded, decoded: bytes read and bytes decoded a transition.
        decoding: share of the processor's time.
    """

    rate: float
    memory: float
    encoded: float
    decoded: float
    decoding: float


def add_streaming(table: Table, place: Path, sizes: tuple[int, ...], seconds: float) -> None:
    stores = {size: pixel_store(place / f"frames-{size}.zarr", size) for size in sizes}
    rate, memory = alone(time_reference, stores[sizes[0]], seconds)
    against = f"{rate:,.0f} /s in memory, {memory:.2f} GB"
    for size, path in stores.items():
        found: Streaming = alone(time_streaming, path, seconds)
        table.add_row(
            f"streaming, transitions/s, {size:,} frames",
            f"{found.rate:,.0f} /s, {found.memory:.2f} GB",
            against,
            f"{found.rate / rate:.1f}",
        )
        table.add_row(
            "  read and decoded a transition",
            f"{found.encoded / 1e3:.1f} kB, {found.decoded / 1e3:.1f} kB",
            f"one frame, {64 * 64 * 3 / 1e3:.1f} kB",
            f"decoding {found.decoding:.0%} of time",
        )


def tiled(count: int) -> Iterator[tuple[Split, slice, int]]:
    """At least `count` states of the sample: its split, an episode's rows, and which time round."""
    split = open_store(SAMPLE).train
    starts = np.concatenate([[0], split.episode_ends[:-1]])
    done = turn = 0
    while done < count:
        for start, stop in zip(starts, split.episode_ends, strict=True):
            if done < count:
                yield split, slice(int(start), int(stop)), turn
                done += int(stop - start)
        turn += 1


def recoloured(frames: np.ndarray, turn: int) -> np.ndarray:
    """Frames that differ from those of any other turn below 256, as compressible as they are."""
    return frames ^ np.uint8(turn % 256)


def pixel_store(path: Path, count: int) -> Path:
    if path.exists():
        return path
    frames = read_all(open_store(SAMPLE).train.observations)
    with StoreWriter(
        path,
        source="scripts/time_data.py",
        env_id=DATASET,
        seeds=None,
        observation_shape=frames.shape[1:],
        observation_dtype="uint8",
        action_dim=5,
        goals=["task1"],
        render_profile="official",
    ) as writer:
        for split, rows, turn in tiled(count):
            length = rows.stop - rows.start
            labels = {"task1": (-np.ones(length), np.ones(length))}
            actions = read_rows(split.actions, rows.start, rows.stop)
            writer.append_episode("train", recoloured(frames[rows], turn), actions, labels)
    return path


class Nothing(NamedTuple):
    """The noises of no agent."""

    none: Any


def time_streaming(path: Path, seconds: float) -> Streaming:
    """Feed batches, augmented, as training does, to an agent whose noises cost nothing."""
    import torch  # here, since the other parts do without

    from deflow_vision.datasets.augment import Augmentation, AugmentConfig
    from deflow_vision.training.feed import Feed

    agent: Any = SimpleNamespace(sample_noises=lambda *_: Nothing(torch.zeros(0)))
    split = open_store(path).train
    sampler = make_sampler(
        split, "task1", frame_stack=STACK, batch_size=BATCH, seed=0, residency="stream"
    )
    feed = Feed(
        sampler,
        Augmentation(AugmentConfig(), 0),
        agent,
        torch.device("cpu"),
        seed=0,
        streams=(0,),
        stream_size=BATCH,
    )
    feed(0)
    read, processor, start, step = bytes_read(), time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step += 1
        feed(step)
    wall = time.perf_counter() - start
    processor, read = time.process_time() - processor, bytes_read() - read
    memory = peak_memory()
    feed.close()

    files = sorted((path / "train/observations/c").rglob("0/0/0"))[:32]
    blocks = [file.read_bytes() for file in files if file.is_file()]
    start = time.perf_counter()
    lengths = [len(Zstd().decode(block)) for block in blocks]
    a_byte = (time.perf_counter() - start) / sum(lengths)
    decoded = read * sum(lengths) / sum(map(len, blocks))
    transitions = step * BATCH
    return Streaming(
        rate=transitions / wall,
        memory=memory,
        encoded=read / transitions,
        decoded=decoded / transitions,
        decoding=decoded * a_byte / processor,
    )


def bytes_read() -> int:
    """What this process has read from files, page cache or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def time_reference(path: Path, seconds: float) -> tuple[float, float]:
    """Transitions/s and GB of the reference's method, on frames of a store.

    Observations and next observations are in memory, each frame in both. A batch takes six gathers,
    two concatenations along the channels and, at every other batch on average, two crops. FQL's
    crop is compiled by XLA; NumPy's pad and a copy a sample take as long on this kind of machine.
    """
    split = open_store(path).train
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


# ----------------------------------------------------------------------------------- conversion


def add_conversion(table: Table, place: Path, count: int) -> None:
    rates = {}
    encoding, starting = alone(time_encoding), alone(time_starting)
    for compressed in (False, True):
        source = npz(
            place / ("deflated" if compressed else "plain") / f"{DATASET}.npz", count, compressed
        )
        rates[compressed], memory, ratio = alone(time_conversion, source)
        if not compressed:
            table.add_row(
                f"converting an .npz of {count:,} frames",
                f"{rates[False]:,.0f} frames/s, {memory:.2f} GB",
                "20,000 frames/s",
                f"{rates[False] / 20_000:.2f}",
            )
            rest = 1 / (1 / rates[False] - starting / count)
            table.add_row(
                f"  but for the {starting:.1f} s that OGBench takes to tell its goals",
                f"{rest:,.0f} frames/s",
                "20,000 frames/s",
                f"{rest / 20_000:.2f}",
            )
            table.add_row(
                "  zstd and digests alone, on all cores",
                f"{encoding:,.0f} frames/s",
                "20,000 frames/s",
                f"{encoding / 20_000:.2f}",
            )
            table.add_row("  the store", f"1/{ratio:.1f} of the frames", "1/6", f"{ratio / 6:.2f}")
    inflating = alone(time_inflating, source)
    table.add_row(
        "converting a compressed .npz",
        f"{rates[True]:,.0f} frames/s, {memory:.2f} GB",
        f"zlib alone {inflating:,.0f} frames/s",
        f"{rates[True] / inflating:.2f}",
    )
    bound = 1 / (1 / encoding + 1 / inflating / len(os.sched_getaffinity(0)))
    table.add_row(
        "  zlib, zstd and digests alone, on all cores",
        f"{bound:,.0f} frames/s",
        f"zlib alone {inflating:,.0f} frames/s",
        f"{bound / inflating:.2f}",
    )


def npz(path: Path, count: int, compressed: bool) -> Path:
    """A file as OGBench's are."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[np.ndarray]] = {}
    for split, rows, turn in tiled(count):
        read = {"actions": split.actions, "observations": split.observations, **split.side}
        for name, array in read.items():
            columns.setdefault(name, []).append(read_rows(array, rows.start, rows.stop))
        columns["observations"][-1] = recoloured(columns["observations"][-1], turn)
        columns.setdefault("terminals", []).append(
            np.arange(rows.start, rows.stop) == rows.stop - 1
        )
    arrays = {name: np.concatenate(values) for name, values in columns.items()}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def time_conversion(source: Path) -> tuple[float, float, float]:
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
    return len_of(observations) / seconds, peak_memory(), observations.nbytes / size


def len_of(array: Any) -> int:
    return int(array.shape[0])


def time_encoding(rounds: int = 10) -> float:
    """Frames/s of what a store's blocks take at least: zstd and digests, on all cores."""
    frames, size = read_all(open_store(SAMPLE).train.observations), 64  # as `StoreWriter` has it
    blocks = [frames[i : i + size] for i in range(0, len(frames) - size + 1, size)] * rounds

    def encode(block: np.ndarray) -> None:
        digest_of(Zstd(ZSTD_LEVEL, checksum=True).encode(block))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start = time.perf_counter()
        list(pool.map(encode, blocks))
        return len(blocks) * size / (time.perf_counter() - start)


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
    return size / (64 * 64 * 3) / (time.perf_counter() - start)


# ------------------------------------------------------------------------------------- sampling


def add_sampling(table: Table, place: Path, sizes: tuple[int, ...], seconds: float) -> None:
    for residency in ("ram", "stream"):
        first = 0.0
        for size in sizes:
            for episodes in sorted({max(10, size // 1000), max(10, size // 100)}):
                path = state_store(place / f"states-{size}-{episodes}.zarr", size, episodes)
                took = alone(time_sampling, path, residency, seconds)
                first = first or took
                table.add_row(
                    f"sampling {residency}, {size:,} transitions, {episodes:,} episodes",
                    f"{1e3 * took:.3f} ms a batch",
                    f"{1e3 * first:.3f} ms",
                    f"{took / first:.2f}",
                )


def state_store(path: Path, transitions: int, episodes: int, width: int = 28) -> Path:
    if path.exists():
        return path
    length = transitions // episodes + 1
    rng = np.random.default_rng(0)
    states = rng.normal(size=(length, width)).astype(np.float32)
    actions = rng.uniform(-1, 1, (length - 1, 5)).astype(np.float32)
    with StoreWriter(
        path,
        source="scripts/time_data.py",
        env_id="cube-single-play-v0",
        seeds=None,
        observation_shape=(width,),
        observation_dtype="float32",
        action_dim=5,
        goals=["task1"],
    ) as writer:
        labels = {"task1": (-np.ones(length), np.ones(length))}
        for number in range(episodes):
            writer.append_episode("train", states + np.float32(number), actions, labels)
    return path


def time_sampling(path: Path, residency: Literal["ram", "stream"], seconds: float) -> float:
    """Mean seconds of a batch."""
    split = open_store(path).train
    sampler = make_sampler(
        split, "task1", frame_stack=1, batch_size=BATCH, seed=0, residency=residency
    )
    sampler.batch(0)
    start, step = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step += 1
        sampler.batch(step)
    took = (time.perf_counter() - start) / step
    sampler.close()
    return took


# --------------------------------------------------------------------------------------- mixing


def add_mixing(table: Table, episodes: int = 1000, length: int = 1001) -> None:
    index = Transitions(np.arange(1, episodes + 1) * length, STACK)
    uniform = measure_mixing(Uniform(index, BATCH, seed=0, streams=(0,)), 16)
    for block_length, window_blocks in ((256, 128), (512, 64), (1024, 32), (4096, 128)):
        epochs = Epochs(
            index,
            BATCH,
            block_length=block_length,
            window_blocks=window_blocks,
            seed=0,
            num_streams=1,
            streams=(0,),
        )
        found = measure_mixing(epochs, 16)
        table.add_row(
            f"mixing, {window_blocks} blocks of {block_length}: episodes in a batch",
            f"{found.episodes:.0f}",
            f"uniform {uniform.episodes:.0f}",
            f"{found.episodes / uniform.episodes:.2f}",
        )
        table.add_row(
            "  of them in the batch before too; pairs within 10 steps",
            f"{found.repeats:.0%}; {found.neighbours:.1f}",
            f"uniform {uniform.repeats:.0%}; {uniform.neighbours:.1f}",
            "",
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
