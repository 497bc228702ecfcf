"""D4RL's HDF5 files (antmaze and adroit) into stores, block by block; the only user of h5py.

A file lists rows (s, a, r, terminal, timeout), not the state that an episode's last action led to.
D4RL's q-learning view of it, which FQL and DeFlow train on, is this: row i is a transition to the
observation of row i + 1, with mask 1 - terminal. A row that timed out is none, for the row after it
is of another episode; nor is the last row. A file's own `next_observations` are not looked at.

We store the same transitions as episodes of states. An episode ends

- with a row that timed out, or the file's last one: its state is the last, without an action;
- in adroit also with a terminal row: its transition stays, with mask 0, and leads where D4RL has it
  lead, to the next row's observation, which is therefore stored twice.

In antmaze a trajectory goes on after the terminal of a goal that it came by. An episode without a
transition is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from deflow_vision import __version__
from deflow_vision.datasets.episodes import Episode, write_episodes
from deflow_vision.datasets.hdf5_storage import refuse_storage
from deflow_vision.datasets.order import RowOrder
from deflow_vision.datasets.schema import StoreError
from deflow_vision.datasets.store import StoreWriter
from deflow_vision.tasks import Task, resolve_dataset

_BLOCK_ROWS = 1 << 15
_CACHE_BYTES = 32 << 20  # of decoded HDF5 chunks, an array; h5py's own 1 MiB decodes some twice
_LONGEST = 100_000  # steps; D4RL's longest episodes have some thousand
_VALUES = ("observations", "actions", "rewards")
_FLAGS = ("terminals", "timeouts")
_SHUFFLED = 0.5  # share of the variance; 1 is expected of rows in random order


def convert_hdf5(source: Path, path: Path, dataset: str | None = None) -> None:
    """Convert a D4RL file into a store, without a validation split: D4RL has none.

    Rewards are D4RL's, with `Task.reward_shift`: antmaze's are -1 and 0.

    Args:
        source: the file, as D4RL distributes it.
        path: the store's folder, which must not exist.
        dataset: the dataset's name, such as "antmaze-umaze-v2"; by default the file's.

    Raises:
        UserError: no dataset has that name.
        StoreError: `path` exists, or the file is missing, damaged or of another dataset.
    """
    task = resolve_dataset(dataset or source.stem)
    if task.suite != "d4rl":
        raise StoreError(f"{source}: {task.dataset} is not one of D4RL's datasets.")
    with Rows(source, task) as rows:
        spans = rows.episodes()
        with source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        writer = StoreWriter(
            path,
            source=f"D4RL's {source.name}, SHA-256 {digest}",
            env_id=task.dataset,
            seeds=None,
            observation_shape=(task.state_dim,),
            observation_dtype="float32",
            action_dim=task.action_dim,
            goals=[task.goal_key],
            versions={"deflow-vision": __version__},
            notes=_notes(task),
            plan={},  # the digest is in `source`
        )
        with writer:
            todo = spans[writer.episodes_done("train") :]
            episodes = (("train", episode) for episode in rows.read(todo))
            write_episodes(writer, {}, episodes, total=len(spans), title=task.dataset)


def _notes(task: Task) -> list[str]:
    rewards = f"; rewards are D4RL's {task.reward_shift:+g}" if task.reward_shift else ""
    return [
        "D4RL's q-learning transitions, so without the last one of an episode that timed out"
        f"{rewards}.",
        f"The environment that policies are evaluated in has {task.deviation}.",
        "Actions beyond [-1, 1] are clipped, as FQL and DeFlow do.",
    ]


class Rows:
    """The rows of one D4RL file; use it as a context manager.

    Args:
        path: the file.
        task: of the dataset that it should hold.

    Raises:
        StoreError: on entering, it is missing, damaged, or of another dataset; later, a block
            cannot be read or holds what it should not.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self._path, self._task = path, task

    def __enter__(self) -> Self:
        import h5py

        with contextlib.ExitStack() as stack:
            if not self._path.is_file():
                raise StoreError(f"{self._path} does not exist.")
            with self._explained("the file"):
                file = h5py.File(
                    self._path, "r", rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=100_003, rdcc_w0=1.0
                )
                stack.enter_context(file)
            self._file = file
            for key in (*_VALUES, *_FLAGS):
                with self._explained(key):
                    self._check_storage(key)
            self._count = len(file["observations"])
            for key, shape in self._shapes().items():
                with self._explained(key):
                    self._check(key, shape)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def episodes(self) -> np.ndarray:
        """Read the whole file once, check it, and find the episodes.

        Returns:
            First and one past the last state's row of each, (E, 2).
        """
        cuts: list[np.ndarray] = []
        order, last = RowOrder(), 0
        for start in range(0, self._count, _BLOCK_ROWS):
            block = self._block(start, min(start + _BLOCK_ROWS, self._count))
            ends = block["timeouts"]
            if self._task.family != "d4rl-antmaze":
                ends = ends | block["terminals"]
            at = np.flatnonzero(ends)
            last = start + int(at[-1]) + 1 if len(at) else last
            if start + len(ends) - last > _LONGEST:  # before all of a file without an end is read
                raise self._endless(last)
            # After a terminal the next row's state is wanted too, after a timeout it is not.
            cuts.append(np.stack([at + 1, at + 2 - block["timeouts"][at]], 1) + start)
            order.add(block["observations"], ends)
        ends_at = np.concatenate([*cuts, [[self._count, self._count]]])
        starts = np.append(0, ends_at[:-1, 0])
        spans = np.stack([starts, np.minimum(ends_at[:, 1], self._count)], 1)
        lengths = np.diff(spans)[:, 0] - 1
        if lengths.max(initial=0) > _LONGEST:
            raise self._endless(int(spans[lengths.argmax(), 0]))
        if not (lengths > 0).any():
            raise self._wrong("timeouts", "no row leads to another one")
        if order.share() > _SHUFFLED:
            raise self._wrong(
                "observations",
                "one row's are no nearer to the next row's than to any other's: the rows are not "
                "in their order",
            )
        return spans[lengths > 0]

    def read(self, spans: np.ndarray) -> Iterator[Episode]:
        """The episodes of some spans, rising, read many at a time.

        Args:
            spans: rows of `episodes()`.
        """
        first = 0
        while first < len(spans):
            start = spans[first, 0]
            # At least one; else as many as a block holds.
            last = max(first + 1, int(np.searchsorted(spans[:, 1], start + _BLOCK_ROWS, "right")))
            block = self._block(start, spans[last - 1, 1])
            for begin, end in spans[first:last] - start:
                rows = slice(begin, end - 1)
                rewards = block["rewards"][rows] + np.float32(self._task.reward_shift)
                masks = 1 - block["terminals"][rows].astype(np.float32)
                yield Episode(
                    block["observations"][begin:end],
                    block["actions"][rows].clip(-1, 1),
                    {},
                    {self._task.goal_key: (rewards, masks)},
                )
            first = last

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        rows = dict.fromkeys((*_VALUES, *_FLAGS), ())
        return rows | {"observations": (self._task.state_dim,), "actions": (self._task.action_dim,)}

    def _check_storage(self, key: str) -> None:
        """Refuse what lies in other files, and chunks that take a machine's memory to decode."""
        import h5py

        if not isinstance(self._file.get(key, getlink=True), h5py.HardLink):
            raise self._wrong(key, f"it is no array here; there are {', '.join(self._file)}")
        array = self._file[key]
        if not isinstance(array, h5py.Dataset) or not array.shape:
            raise self._wrong(key, f"it is no array here; there are {', '.join(self._file)}")
        refuse_storage(array)

    def _check(self, key: str, row: tuple[int, ...]) -> None:
        array = self._file[key]
        if len(array) != self._count:
            raise self._wrong(key, f"{len(array)} rows for {self._count} of observations")
        if array.shape[1:] != row and not (row == () and array.shape[1:] == (1,)):
            raise self._wrong(
                key, f"rows of shape {array.shape[1:]}, {self._task.dataset} has {row}"
            )
        kinds = "f" if key in _VALUES else "buif"
        if array.dtype.kind not in kinds:
            wanted = "numbers with a fraction" if key in _VALUES else "yes and no"
            raise self._wrong(key, f"dtype {array.dtype}, which cannot be {wanted}")

    def _block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        block = {}
        for key, row in self._shapes().items():
            with self._explained(key):
                rows = self._file[key][start:stop].reshape(stop - start, *row)
            if key in _FLAGS:
                if not np.isin(rows, (0, 1)).all():
                    raise self._wrong(key, f"values other than 0 and 1 in rows {start} to {stop}")
                block[key] = rows.astype(bool)
                continue
            with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
                block[key] = rows.astype(np.float32)
            bad = ~np.isfinite(block[key]).reshape(stop - start, -1).all(1)
            if bad.any():
                raise self._wrong(key, f"a value that is not finite in row {start + bad.argmax()}")
        return block

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, MemoryError) as error:
            raise self._wrong(key, f"it cannot be read: {error}") from error

    def _endless(self, start: int) -> StoreError:
        return self._wrong("timeouts", f"no episode ends in {_LONGEST:,} rows from {start} on")

    def _wrong(self, key: str, problem: str) -> StoreError:
        return StoreError(
            f"{self._path}, {key}: {problem}. Is it D4RL's file of {self._task.dataset}, whole and "
            "as it was downloaded? Otherwise download it again, or name its dataset (--dataset)."
        )


def read_through(path: Path, *, contents: bool = True) -> None:
    """Open an HDF5 file, which tells whether it was cut short, and decode all that is in it.

    Args:
        path: the file.
        contents: whether its arrays are read, block by block, after its structure.

    Raises:
        OSError: something cannot be read.
        ValueError: an array lies in another file, or takes too much memory to decode.
    """
    import h5py

    def read(_: str, array: Any) -> None:
        if isinstance(array, h5py.Dataset) and array.shape:
            refuse_storage(array)
            row_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
            rows = max(1, min(_BLOCK_ROWS, _CACHE_BYTES // row_bytes))
            for start in range(0, len(array), rows):
                array[start : start + rows]

    with h5py.File(path, "r", locking=False) as file:  # a download holds a lock of its own
        if contents:
            file.visititems(read)
