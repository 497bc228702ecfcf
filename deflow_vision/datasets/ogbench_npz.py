"""OGBench's .npz files into stores, an episode at a time: megabytes of memory for any size of file.

`numpy.load` would inflate a whole array (12 GB of frames); here each array's member of the zip
archive is read as a stream, compressed or not.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from deflow_vision import __version__
from deflow_vision.datasets.episodes import Episode, write_episodes
from deflow_vision.datasets.relabel import environment_of, read_goals
from deflow_vision.datasets.schema import SIDE_DTYPES, StoreError
from deflow_vision.datasets.store import StoreWriter
from deflow_vision.tasks import Task, resolve_dataset

_log = logging.getLogger(__name__)

_SKIP_BYTES = 1 << 20
_MAX_EPISODE_BYTES = 100 << 20  # one is held in memory, some times over; OGBench's take up to 50 MB


def convert_npz(source: Path, path: Path, dataset: str | None = None) -> None:
    """Convert an OGBench file, and the `-val` file beside it, into a store.

    Every stored state is kept, the last of each episode included. Rewards and masks of all five
    goals are computed from the simulator states. After a kill or Ctrl-C, the same call goes on.

    Args:
        source: the training file, `<dataset>.npz`.
        path: the store's folder, which must not exist.
        dataset: the dataset's name; by default the file's.

    Raises:
        UserError: no OGBench dataset has that name.
        StoreError: `path` exists, or a file is missing, damaged or of another dataset.
    """
    task = resolve_dataset(dataset or source.stem)
    if task.suite != "ogbench":
        raise StoreError(f"{task.dataset} is not one of OGBench's datasets.")
    val = source.with_name(f"{source.stem}-val.npz")
    files = {"train": source} | ({"val": val} if val.is_file() else {})
    with contextlib.ExitStack() as stack:
        archives = {
            split: stack.enter_context(Archive(file, task)) for split, file in files.items()
        }
        if "val" not in files:
            _log.warning("%s is missing: the store will have no validation split", val)
        goals = read_goals(environment_of(task.dataset))
        writer = stack.enter_context(
            StoreWriter(
                path,
                source=f"OGBench's {', '.join(file.name for file in files.values())}",
                env_id=task.dataset,
                seeds=None,
                versions={
                    "deflow-vision": __version__,
                    "ogbench": importlib.metadata.version("ogbench"),
                },
                render_profile="official" if task.pixels else None,
                goals=list(goals),
                plan={split: archive.checksums() for split, archive in archives.items()},
                **archives["train"].layout(),
            )
        )
        episodes = (
            (split, episode)
            for split, archive in archives.items()
            for episode in archive.episodes(writer.episodes_done(split))
        )
        total = sum(len(archive.lengths) for archive in archives.values())
        write_episodes(writer, goals, episodes, total=total, title=task.dataset)


class Archive:
    """The episodes of one OGBench file; use it as a context manager, and read it once.

    Args:
        path: the .npz file.
        task: of the dataset that it should hold.

    Attributes:
        lengths: states of each episode, (E,).

    Raises:
        StoreError: on entering, it is missing, damaged, or of another dataset.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self._path, self._task = path, task
        self.lengths = np.zeros(0, np.int64)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            with self._explained():
                self._zip = stack.enter_context(zipfile.ZipFile(self._path))
                self._members = {
                    name: _Member(self._zip, name)
                    for name in ("observations", "actions", *SIDE_DTYPES)
                    if name not in SIDE_DTYPES or f"{name}.npy" in self._zip.namelist()
                }
                terminals = _Member(self._zip, "terminals")
                ends = np.flatnonzero(terminals.read(terminals.shape[0])) + 1
            self.lengths = np.diff(ends, prepend=0)
            self._check(int(terminals.shape[0]))
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def layout(self) -> dict[str, Any]:
        """Shapes and dtypes of an episode, as `StoreWriter` wants them."""
        shapes = {name: member.shape[1:] for name, member in self._members.items()}
        return {
            "observation_shape": shapes.pop("observations"),
            "observation_dtype": "uint8" if self._task.pixels else "float32",
            "action_dim": shapes.pop("actions")[0],
            "side": shapes,
        }

    def checksums(self) -> dict[str, list[int]]:
        """Size and CRC-32 of each array in the file, as its list of contents has them."""
        return {info.filename: [info.file_size, info.CRC] for info in self._zip.infolist()}

    def episodes(self, first: int = 0) -> Iterator[Episode]:
        """The episodes from number `first` on."""
        if first == len(self.lengths):
            return
        for member in self._members.values():
            with self._explained():
                member.skip(int(self.lengths[:first].sum()))
        for length in self.lengths[first:]:
            with self._explained():
                rows = {name: member.read(int(length)) for name, member in self._members.items()}
            yield Episode(rows.pop("observations"), rows.pop("actions"), _side(rows))

    def _check(self, num_states: int) -> None:
        if not len(self.lengths) or self.lengths.sum() != num_states:
            raise StoreError(f"{self._path}: its last row does not end an episode.")
        for name, member in self._members.items():
            if member.shape[0] != num_states:
                raise StoreError(
                    f"{self._path}: {member.shape[0]} rows of {name} for {num_states} terminals."
                )
        longest = int(self.lengths.max())
        size = longest * sum(member.row_bytes for member in self._members.values())
        if size > _MAX_EPISODE_BYTES:
            raise StoreError(
                f"{self._path}: its longest episode, {longest} states, takes {size >> 20} MiB; "
                f"this program converts episodes of up to {_MAX_EPISODE_BYTES >> 20} MiB."
            )
        if "qpos" not in self._members:
            raise StoreError(f"{self._path} has no qpos, from which rewards are computed.")
        observations = self._members["observations"]
        wanted = (64, 64, 3) if self._task.pixels else (self._task.state_dim,)
        pixels = observations.dtype == np.uint8
        if observations.shape[1:] != wanted or pixels != self._task.pixels:
            raise StoreError(
                f"{self._path}: observations of shape {observations.shape[1:]} and dtype "
                f"{observations.dtype}; {self._task.dataset} has {wanted}. Is it another dataset's?"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"{self._path} does not exist. `python scripts/data.py download "
                f"{self._task.dataset}` brings it."
            ) from error
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError) as error:
            raise StoreError(
                f"{self._path} is damaged or not an OGBench file: {error}. Download it again."
            ) from error


class _Member:
    """One array of an .npz file, read from its start in runs of rows."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._stream = archive.open(f"{name}.npy")
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(self._stream)]
        self.shape, fortran, self.dtype = read_header(self._stream)
        if fortran or self.dtype.hasobject or not self.shape:
            raise ValueError(f"{name} is not a plain array of rows")
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize

    def skip(self, count: int) -> None:
        """Pass over rows. Not by seeking: the CRC at the file's end is of every byte."""
        left = count * self.row_bytes
        while left:
            passed = len(self._stream.read(min(left, _SKIP_BYTES)))
            if not passed:
                raise EOFError("it ends early")
            left -= passed

    def read(self, count: int) -> np.ndarray:
        """The next `count` rows; at the end of the file zipfile checks its CRC."""
        size = count * self.row_bytes
        content = self._stream.read(size)
        if len(content) != size:
            raise EOFError("it ends early")
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


def _side(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Side arrays in the store's dtypes, from which rewards are computed too."""
    return {name: value.astype(SIDE_DTYPES[name], copy=False) for name, value in rows.items()}
