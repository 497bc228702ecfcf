"""OGBench's .npz files into stores, an episode at a time: megabytes of memory for any size of file.

`numpy.load` would inflate a whole array (12 GB of frames); here each array's member of the zip
archive is read as a stream, compressed or not.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from deflow_vision import __version__
from deflow_vision.datasets.columns import fit_rows
from deflow_vision.datasets.episodes import Episode, write_episodes
from deflow_vision.datasets.npy import PIECE_BYTES, Member
from deflow_vision.datasets.order import Order
from deflow_vision.datasets.partial import DamagedSourceError
from deflow_vision.datasets.relabel import Goal, environment_of, read_goals, relabel_all
from deflow_vision.datasets.schema import SIDE_DTYPES, StoreError
from deflow_vision.datasets.store import StoreWriter
from deflow_vision.tasks import Task, resolve_dataset

_log = logging.getLogger(__name__)

_KINDS = dict.fromkeys(("observations", "actions", *SIDE_DTYPES), "f") | {"button_states": "buif"}
_MAX_EPISODE_BYTES = 100 << 20  # one is held in memory, some times over; OGBench's take up to 50 MB
_UNORDERED = 0.5  # `Order`'s ratio: 1 is expected of shuffled rows; OGBench's arms have 0.0003


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
        for archive in archives.values():
            archive.check_goals(goals)
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
                plan={split: archive.state() for split, archive in archives.items()},
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
        StoreError: on entering, it is missing, damaged, or of another dataset; later, an episode is
            damaged, holds what it should not, or is not in time's order.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self._path, self._task = path, task
        self.lengths = np.zeros(0, np.int64)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            with self._explained():
                if not self._path.is_file():
                    raise FileNotFoundError
                self._zip = stack.enter_context(zipfile.ZipFile(self._path))
                members = {
                    name: Member(stack, self._zip, name)
                    for name in ("terminals", *_KINDS)
                    if name not in SIDE_DTYPES or f"{name}.npy" in self._zip.namelist()
                }
            terminals = members.pop("terminals")
            self._members = members
            self._check_rows(terminals.shape[0])  # before so many of them are read
            self.lengths = self._lengths(terminals)
            self._check(terminals.shape[0])
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def layout(self) -> dict[str, Any]:
        """Shapes and dtypes of an episode, as `StoreWriter` wants them."""
        shapes = {name: member.shape[1:] for name, member in self._members.items()}
        return {
            "observation_shape": shapes.pop("observations"),
            "observation_dtype": "uint8" if self._task.pixels else "float32",
            "action_dim": shapes.pop("actions")[0],
            "side": shapes,
        }

    def check_goals(self, goals: Mapping[str, Goal]) -> None:
        """Refuse simulator states of which the goals' rewards cannot be computed."""
        state = {
            name: np.zeros((1, *member.shape[1:]))
            for name, member in self._members.items()
            if name in SIDE_DTYPES
        }
        try:
            relabel_all(goals, state)
        except (ValueError, IndexError) as error:
            raise StoreError(
                f"{self._path}: qpos, of {state['qpos'].size} numbers, or button_states do not fit "
                f"{self._task.dataset}, whose rewards are computed from them: {error}."
            ) from error

    def state(self) -> dict[str, Any]:
        """What tells that the file is still the one that a conversion began with.

        Size and CRC-32 of each array, as its list of contents has them, and when it was changed: a
        damaged file has the list of the sound one.
        """
        arrays = {info.filename: [info.file_size, info.CRC] for info in self._zip.infolist()}
        return {**arrays, "changed": self._path.stat().st_mtime_ns}

    def episodes(self, first: int = 0) -> Iterator[Episode]:
        """The episodes from number `first` on."""
        if first == len(self.lengths):
            return
        for member in self._members.values():
            with self._explained():
                member.skip(int(self.lengths[:first].sum()))
        orders = {"qpos": Order()} | ({} if self._task.pixels else {"observations": Order()})
        for number, length in enumerate(self.lengths[first:], first):
            where = f"{self._path}, episode {number}"
            with self._explained():
                rows = {name: member.read(int(length)) for name, member in self._members.items()}
            for name, order in orders.items():
                if order.add(rows[name]) > _UNORDERED:
                    raise DamagedSourceError(
                        f"{where}: {name} of one row are no nearer to the next row's than to any "
                        "other's: the rows are not in their order."
                    )
            observations, actions = rows.pop("observations"), rows.pop("actions")
            try:
                side = {  # in the store's dtypes, from which rewards are computed too
                    name: fit_rows(name, value, value.shape[1:], SIDE_DTYPES[name])
                    for name, value in rows.items()
                }
            except StoreError as error:
                raise StoreError(f"{where}: {error}") from error
            yield Episode(observations, actions, side)

    def _lengths(self, terminals: Member) -> np.ndarray:
        """States of each episode, (E,)."""
        ends = [np.zeros(1, np.int64)]
        if len(terminals.shape) == 1 and terminals.dtype.kind in "buif":
            for start in range(0, terminals.shape[0], PIECE_BYTES):
                with self._explained():
                    flags = terminals.read(min(PIECE_BYTES, terminals.shape[0] - start))
                if not np.isin(flags, (0, 1)).all():
                    break
                ends.append(np.flatnonzero(flags) + start + 1)
            else:
                return np.diff(np.concatenate(ends))
        raise StoreError(f"{self._path}: its terminals are no vector of 0 and 1.")

    def _check_rows(self, num_states: int) -> None:
        for name, member in self._members.items():
            if member.shape[0] != num_states:
                raise StoreError(
                    f"{self._path}: {member.shape[0]} rows of {name} for {num_states} terminals."
                )

    def _check(self, num_states: int) -> None:
        if not len(self.lengths) or self.lengths.sum() != num_states:
            raise StoreError(f"{self._path}: its last row does not end an episode.")
        if self.lengths.min() < 2:
            raise StoreError(
                f"{self._path}: episode {self.lengths.argmin()} has a single state, and so no "
                "transition. Are its terminals in their places?"
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
        frames = self._task.pixels
        rows = {
            "observations": (64, 64, 3) if frames else (self._task.state_dim,),
            "actions": (self._task.action_dim,),
        }
        kinds = _KINDS | ({"observations": "u"} if frames else {})
        for name, member in self._members.items():
            row = rows.get(name, member.shape[1:2] or ("any",))
            if member.shape[1:] != row or member.dtype.kind not in kinds[name]:
                raise StoreError(
                    f"{self._path}: {name} of shape {member.shape[1:]} and dtype {member.dtype}; "
                    f"{self._task.dataset} has {row}. Is it another dataset's?"
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
        except (
            *(zipfile.BadZipFile, zlib.error, EOFError),
            *(KeyError, ValueError, RuntimeError, MemoryError),
        ) as error:
            raise DamagedSourceError(
                f"{self._path} is damaged or not an OGBench file: {error}. `python scripts/data.py "
                f"download {self._task.dataset}` sets a damaged download aside and brings it anew."
            ) from error
