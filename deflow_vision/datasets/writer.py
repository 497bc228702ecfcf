"""Writing stores: under a temporary name first, renamed when complete."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr

from deflow_vision.datasets.schema import (
    FORMAT,
    SIDE_DTYPES,
    SPLITS,
    VERSION,
    ZSTD_LEVEL,
    StoreError,
    array_digests,
    create_array,
    open_root,
)

_log = logging.getLogger(__name__)

Goals = Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]


class StoreWriter:
    """Writes a store episode by episode, in bounded memory; use it as a context manager.

    All goes to `<path>.partial-<pid>`, which becomes `path` when the block ends, and is removed
    when it ends with an error.

    Args:
        path: the store's folder, which must not exist.
        source: where the data come from, in words.
        env_id: the environment that made them.
        seeds: what the data were seeded with, any JSON value.
        observation_shape: (D,) or (H, W, C), of a single frame.
        observation_dtype: "float32" or "uint8".
        action_dim: A.
        side: shape of a row of each side array (`qpos`, `qvel`, `button_states`).
        versions: versions of the programs that made the data.
        render_profile: the renderer's settings, for pixels.
        chunk: frames a chunk; by default 3 MiB of them.
        compression_level: zstd's, 1 to 22; 19 makes frames 15% smaller, for 8 ms a frame.

    Raises:
        StoreError: `path` exists, or the observations' dtype or a side array is unknown.
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
        versions: Mapping[str, str] | None = None,
        render_profile: str | None = None,
        chunk: int | None = None,
        compression_level: int = ZSTD_LEVEL,
    ) -> None:
        self._path = Path(path)
        self._partial = self._path.with_name(f"{self._path.name}.partial-{os.getpid()}")
        dtype = np.dtype(observation_dtype).name
        if dtype not in ("float32", "uint8"):
            raise StoreError(f"observations of dtype {dtype}: a store holds float32 or uint8.")
        for name in side or {}:
            if name not in SIDE_DTYPES:
                raise StoreError(f"side array {name!r}: schema v1 has {', '.join(SIDE_DTYPES)}.")
        self._chunk = chunk
        self._level = compression_level
        self._columns = {
            "observations": (tuple(observation_shape), dtype),
            "actions": ((action_dim,), "float32"),
            **{name: (tuple(shape), SIDE_DTYPES[name]) for name, shape in (side or {}).items()},
        }
        self._attributes = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "env_id": env_id,
            "seeds": seeds,
            "versions": dict(versions or {}),
            "render_profile": render_profile,
        }
        self._rows: dict[str, dict[str, _Rows]] = {}
        self._lengths: dict[str, list[int]] = {}

    def __enter__(self) -> Self:
        refuse_existing(self._path)
        for stale in self._path.parent.glob(f"{self._path.name}.partial-*"):
            _log.warning("%s is left from a run that was cut off; delete it to free disk", stale)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._root = zarr.open_group(self._partial, mode="w", zarr_format=3)
        return self

    def append_episode(
        self, split: str, observations: np.ndarray, actions: np.ndarray, **side: np.ndarray
    ) -> None:
        """Append one episode of T transitions.

        Args:
            split: "train" or "val".
            observations: every state once, the last included, (T + 1, ...).
            actions: (T, A), or (T + 1, A) whose last row is ignored (zeros are stored).
            side: every side array declared, (T + 1, ...) each.

        Raises:
            StoreError: a length, a shape, a dtype or a value does not fit.
        """
        length = len(observations)
        columns = self._split(split)
        if len(actions) not in (length - 1, length):
            raise StoreError(f"{len(actions)} actions for {length} states of an episode.")
        padded = np.zeros((length, *np.shape(actions)[1:]), np.float32)
        padded[:-1] = actions[: length - 1]
        values = {"observations": observations, "actions": padded, **side}
        if values.keys() != columns.keys() or length == 0:
            raise StoreError(
                f"an episode of {length} states with {', '.join(values)}; this store needs "
                f"{', '.join(columns)}, and at least one state."
            )
        fitted = {name: self._fit(name, np.asarray(value)) for name, value in values.items()}
        for name, value in fitted.items():
            if len(value) != length:
                raise StoreError(f"{name} has {len(value)} rows in an episode of {length} states.")
        for name, value in fitted.items():
            columns[name].append(value)
        self._lengths[split].append(length)

    def write_goal(self, split: str, goal: str, rewards: np.ndarray, masks: np.ndarray) -> None:
        """Write the rewards and masks of one goal, when the split has all its episodes.

        Args:
            split: "train" or "val".
            goal: its key, such as "task1", or "default" where there is only one.
            rewards: one for each stored state of the split, (N,).
            masks: likewise, 0 or 1.
        """
        self._split(split)
        _write_goal(self._root, split, goal, rewards, masks, sum(self._lengths[split]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._commit()
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                shutil.rmtree(self._partial, ignore_errors=True)
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise StoreError(f"{self._path}: no space is left on the disk.") from error

    def _commit(self) -> None:
        if not self._lengths.get("train"):
            raise StoreError(f"{self._path}: no training episode was written.")
        counts = {}
        for split, lengths in self._lengths.items():
            for rows in self._rows[split].values():
                rows.flush()
            ends = create_array(self._root[split], "episode_ends", (), "int64")
            ends.append(np.cumsum(lengths, dtype=np.int64))
            counts[split] = {
                "states": sum(lengths),
                "episodes": len(lengths),
                "transitions": sum(lengths) - len(lengths),
            }
        digests = array_digests(self._partial, self._partial)
        self._root.attrs.put(
            {**self._attributes, "counts": counts, "digests": digests, "complete": True}
        )
        self._partial.rename(self._path)

    def _split(self, split: str) -> dict[str, _Rows]:
        if split not in SPLITS:
            raise StoreError(f"split {split!r}: a store has {' and '.join(SPLITS)}.")
        if split not in self._rows:
            group = self._root.create_group(split)
            self._rows[split] = {
                name: _Rows(
                    create_array(
                        *(group, name, shape, dtype),
                        self._chunk if name == "observations" else None,
                        self._level,
                    )
                )
                for name, (shape, dtype) in self._columns.items()
            }
            self._lengths[split] = []
        return self._rows[split]

    def _fit(self, name: str, value: np.ndarray) -> np.ndarray:
        shape, dtype = self._columns[name]
        if value.shape[1:] != shape:
            raise StoreError(f"{name}: rows of shape {value.shape[1:]}, the store has {shape}.")
        if dtype == "uint8" and value.dtype != np.uint8:
            raise StoreError(f"{name}: dtype {value.dtype}, the store has uint8.")
        value = value.astype(dtype, copy=False)
        if dtype == "float32" and not np.isfinite(value).all():
            raise StoreError(f"{name}: the episode has values that are not finite.")
        return value


def refuse_existing(path: Path) -> None:
    """Raise a `StoreError` if there is something at `path`: stores are never overwritten."""
    if path.exists():
        raise StoreError(f"{path} exists. Delete it first, or give another path.")


def add_goals(path: Path, goals: Goals) -> None:
    """Write rewards and masks of goals into a finished store; a goal that exists is replaced.

    A goal counts only once its digests are recorded, so that it is either complete or absent.

    Args:
        path: the store's folder.
        goals: split -> goal -> (rewards, masks), each (N,), aligned with the stored states.

    Raises:
        StoreError: not a store, or a length or a value that does not fit.
    """
    path = Path(path)
    root = open_root(path, "r+")
    attributes = dict(root.attrs)
    for split, tasks in goals.items():
        if split not in attributes.get("counts", {}):
            raise StoreError(f"{path} has no split {split!r}.")
        for goal, (rewards, masks) in tasks.items():
            folder = path / split / "tasks" / goal
            prefix = f"{split}/tasks/{goal}/"
            attributes["digests"] = {
                name: digest
                for name, digest in attributes["digests"].items()
                if not name.startswith(prefix)
            }
            root.attrs.put(attributes)
            shutil.rmtree(folder, ignore_errors=True)
            count = attributes["counts"][split]["states"]
            _write_goal(root, split, goal, rewards, masks, count)
            attributes["digests"] |= array_digests(path, folder)
            root.attrs.put(attributes)


def _write_goal(
    root: Any, split: str, goal: str, rewards: np.ndarray, masks: np.ndarray, count: int
) -> None:
    values = {"rewards": np.asarray(rewards, np.float32), "masks": np.asarray(masks, np.float32)}
    for name, value in values.items():
        if value.shape != (count,):
            raise StoreError(f"{split}/{goal}: {name} of shape {value.shape} for {count} states.")
        if not np.isfinite(value).all():
            raise StoreError(f"{split}/{goal}: {name} that are not finite.")
    if not np.isin(values["masks"], (0, 1)).all():
        raise StoreError(f"{split}/{goal}: masks other than 0 and 1.")
    group = root.create_group(f"{split}/tasks/{goal}")
    for name, value in values.items():
        create_array(group, name, (), "float32").append(value)


class _Rows:
    """Appends to one array in whole chunks: a chunk written in parts is encoded anew each time."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self._pending: list[np.ndarray] = []
        self._count = 0

    def append(self, rows: np.ndarray) -> None:
        self._pending.append(np.array(rows))  # a copy: the caller may reuse its buffer
        self._count += len(rows)
        chunk = self._array.chunks[0]
        if self._count >= chunk:
            block = np.concatenate(self._pending)
            whole = self._count - self._count % chunk
            self._array.append(block[:whole])
            self._pending, self._count = [block[whole:].copy()], self._count - whole

    def flush(self) -> None:
        if self._count:
            self._array.append(np.concatenate(self._pending))
            self._pending, self._count = [], 0
