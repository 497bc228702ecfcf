"""Writing stores: beside their place first, recorded as they grow, moved there when complete."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr

from deflow_vision.datasets.columns import ENDS, Block, Columns, fit_episode
from deflow_vision.datasets.goals import Labels, check_goals, goal_rows
from deflow_vision.datasets.partial import (
    DamagedSourceError,
    Partial,
    Progress,
    refuse_existing,
    sync,
)
from deflow_vision.datasets.schema import (
    FORMAT,
    SIDE_DTYPES,
    SPLITS,
    VERSION,
    ZSTD_LEVEL,
    StoreError,
    complete,
)
from deflow_vision.types import UserError

_log = logging.getLogger(__name__)

_SYNCS = 16  # files that the disk is told to keep at once; it groups them
_SECONDS = 5.0  # between two records of the progress: what a killed writer loses at most


class StoreWriter:
    """Writes a store episode by episode, in bounded memory; use it as a context manager.

    All goes to `<path>.partial`, which becomes `path` when the block ends. With a `plan` the writer
    is restartable: after a kill, Ctrl-C, a full disk or a program's error, a writer of the same
    arguments goes on behind the last episode that was recorded (every 5 seconds, and where an error
    ends the block), and the store is the same, byte for byte, as that of a writer that was never
    stopped. The caller then leaves out what is there:

        with StoreWriter(path, ..., plan={"episodes": 1000}) as writer:
            for number in range(writer.episodes_done("train"), 1000):
                writer.append_episode("train", *make_episode(number))

    Bad input (a `UserError`) records nothing further, but keeps what was recorded. Without a `plan`
    every error removes what was written, and a `DamagedSourceError` always does.

    Args:
        path: the store's folder, which must not exist.
        source: where the data come from, in words.
        env_id: the environment that made them.
        seeds: what the data were seeded with, any JSON value.
        observation_shape: (D,) or (H, W, C), of a single frame.
        observation_dtype: "float32" or "uint8".
        action_dim: A.
        side: shape of a row of each side array (`qpos`, `qvel`, `button_states`).
        goals: keys of the goals that every episode has rewards and masks for, such as "task1", or
            "default" where there is only one.
        versions: versions of the programs that made the data.
        render_profile: the renderer's settings, for pixels.
        notes: what a reader of its card should know besides, a sentence or two each.
        chunk: frames a chunk; by default 768 KiB of them.
        compression_level: zstd's, 1 to 22; 19 makes frames 15% smaller, for 8 ms a frame.
        plan: what decides the content besides these arguments, any JSON value: numbers of
            episodes, digests of the files that are read. It is not stored.

    Raises:
        StoreError: the observations' dtype, a side array or a goal's name does not fit. On
            entering: `path` exists, another process writes it, or what is there in part is of
            other arguments.
    """

    def __init__(
        self,
        path: Path,
        *,
        source: str,
        env_id: str,
        seeds: Any,
        observation_shape: Sequence[int],
        observation_dtype: str | np.dtype[Any],
        action_dim: int,
        side: Mapping[str, Sequence[int]] | None = None,
        goals: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        render_profile: str | None = None,
        notes: Sequence[str] = (),
        chunk: int | None = None,
        compression_level: int = ZSTD_LEVEL,
        plan: Any = None,
    ) -> None:
        self._path = Path(path)
        self._partial = Partial(self._path)
        dtype = np.dtype(observation_dtype).name
        if dtype not in ("float32", "uint8"):
            raise StoreError(f"observations of dtype {dtype}: a store holds float32 or uint8.")
        for name in side or {}:
            if name not in SIDE_DTYPES:
                raise StoreError(f"side array {name!r}: schema v1 has {', '.join(SIDE_DTYPES)}.")
        check_goals(goals)
        self._columns: dict[str, tuple[tuple[int, ...], str]] = {
            "observations": (tuple(observation_shape), dtype),
            "actions": ((action_dim,), "float32"),
            **{name: (tuple(shape), SIDE_DTYPES[name]) for name, shape in (side or {}).items()},
            **{
                f"tasks/{g}/{name}": ((), "float32") for g in goals for name in ("rewards", "masks")
            },
            ENDS: ((), "int64"),
        }
        self._chunk = chunk
        self._level = compression_level
        self._attributes = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "env_id": env_id,
            "seeds": seeds,
            "versions": dict(versions or {}),
            "render_profile": render_profile,
            "notes": list(notes),
        }
        self._plan = plan
        job = {"columns": self._columns, "chunk": chunk, "compression_level": compression_level}
        self._job = json.loads(json.dumps({**self._attributes, **job, "plan": plan}))
        self._splits: dict[str, Columns] = {}
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "write")
        self._writing: list[Future[None]] = []  # the last episode's blocks
        self._whole = True  # whether all columns end with the same episode, and none is finished

    def __enter__(self) -> Self:
        try:
            self._partial.lock()
            refuse_existing(self._path)
            progress = self._partial.load(self._job)
            self._root = zarr.create_group(self._partial.store, zarr_format=3)
            if progress is not None:
                self._restore(progress)
        except BaseException as error:
            self._partial.unlock()
            self._partial.explain(error)
            raise
        self._due = time.monotonic() + _SECONDS
        return self

    def episodes_done(self, split: str) -> int:
        """Episodes of a split that are written, those of the writer that was stopped included."""
        return self._splits[split].episodes if split in self._splits else 0

    def append_episode(
        self,
        split: str,
        observations: np.ndarray,
        actions: np.ndarray,
        goals: Labels | None = None,
        **side: np.ndarray,
    ) -> None:
        """Append one episode of T transitions.

        Args:
            split: "train" or "val".
            observations: every state once, the last included, (T + 1, ...).
            actions: (T, A) in [-1, 1], or (T + 1, A) whose last row is ignored (zeros are stored).
            goals: (rewards, masks) of every goal declared, (T + 1,) each, or (T,), of which the
                last is stored for the last state too, where no transition starts. Masks are 0 or 1.
            side: every side array declared, (T + 1, ...) each.

        Raises:
            StoreError: a length, a shape, a dtype or a value does not fit; names the episode.
        """
        length, actions = len(observations), np.atleast_1d(actions)
        try:
            if len(actions) not in (length - 1, length):
                raise StoreError(f"{len(actions)} actions for {length} states of an episode.")
            padded = np.zeros((length, *actions.shape[1:]), actions.dtype)
            padded[:-1] = actions[: length - 1]
            values = {"observations": observations, "actions": padded, **side}
            rows = fit_episode(values | goal_rows(goals or {}, length), self._columns, length)
        except StoreError as error:
            where = f"{self._path}: episode {self.episodes_done(split)} of {split}, counted from 0"
            raise StoreError(f"{where}, is refused: {error}") from error
        columns, self._whole = self._split(split), False
        self._write(columns.append(rows, length))
        self._whole = True
        if self._plan is not None and time.monotonic() >= self._due and not self._partial.busy():
            self._record()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException as failure:
            error = failure
            raise
        finally:
            try:
                if error is not None:
                    self._stop(error)
            finally:
                self._threads.shutdown()
                self._partial.unlock()

    def _write(self, blocks: list[Block]) -> None:
        """Write blocks while the caller makes the next episode, when the last one's are written."""
        self._wait()
        self._writing = [self._threads.submit(block.write) for block in blocks]

    def _wait(self) -> None:
        wait(self._writing)
        for block in self._writing:
            block.result()

    def _record(self) -> None:
        self._wait()
        progress = Progress(
            self._job,
            {name: split.counts() for name, split in self._splits.items()},
            {
                f"{name}/{key}": column.rest()
                for name, split in self._splits.items()
                for key, column in split.by_name.items()
            },
        )
        files = [file for split in self._splits.values() for file in split.take_files()]
        self._partial.save(progress, files)
        self._due = time.monotonic() + _SECONDS

    def _finish(self) -> None:
        if not self.episodes_done("train"):
            raise StoreError(f"{self._path}: no training episode was written.")
        self._partial.wait()
        self._whole = False
        for split in self._splits.values():
            self._write(split.finish())
        self._wait()
        counts = {name: split.counts() for name, split in self._splits.items()}
        complete(self._root, {**self._attributes, "counts": counts})
        if self._plan is not None:
            tree = os.walk(self._partial.store)
            files = [Path(folder, name) for folder, _, names in tree for name in names]
            with ThreadPoolExecutor(_SYNCS) as threads:
                list(threads.map(sync, files))
        self._partial.publish()

    def _stop(self, error: BaseException) -> None:
        """Keep what another run can go on from, and say so; remove anything else."""
        wait(self._writing)
        with contextlib.suppress(OSError):  # a full disk is full for this too
            good = self._plan is not None and self._splits and self._whole
            if good and not isinstance(error, UserError):
                self._record()
            self._partial.wait()
        if self._partial.has_progress() and not isinstance(error, DamagedSourceError):
            _log.warning("%s is kept: the same command goes on from there", self._partial.folder)
        else:
            self._partial.remove()
        self._partial.explain(error)

    def _restore(self, progress: Progress) -> None:
        for name, done in progress.splits.items():
            split = self._split(name)
            for key, column in split.by_name.items():
                try:
                    split.episodes, split.states = int(done["episodes"]), int(done["states"])
                    blocks = column.go_on(key, split.count(key), progress.rows[f"{name}/{key}"])
                except (KeyError, TypeError, ValueError) as error:
                    raise self._partial.cannot_go_on(f"{name}/{key}: {error}") from error
                self._partial.cut(column.array, blocks)
        done_already = ", ".join(f"{s.episodes} {name}" for name, s in self._splits.items())
        _log.info("%s: going on after %s episodes", self._partial.folder, done_already)

    def _split(self, name: str) -> Columns:
        if name not in SPLITS:
            raise StoreError(f"split {name!r}: a store has {' and '.join(SPLITS)}.")
        if name not in self._splits:
            self._splits[name] = Columns(
                self._root.create_group(name),
                self._partial.store / name,
                self._columns,
                self._chunk,
                self._level,
            )
        return self._splits[name]
