"""Stores of trajectories, schema v1: open one, read it, check it.

A Zarr v3 group with `train/` and, mostly, `val/`. In each: `observations` (uint8 (N, H, W, C) or
float32 (N, D); every state once, the last of each episode included), `actions` (N, A),
`episode_ends` (E,) exclusive, side arrays such as `qpos`, and `tasks/<goal>/{rewards,masks}` (N,).
`writer.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deflow_vision.datasets.address import locate
from deflow_vision.datasets.block_cache import BlockCache
from deflow_vision.datasets.checks import (
    check_array,
    check_description,
    checked_attributes,
    damaged,
)
from deflow_vision.datasets.goals import add_goals
from deflow_vision.datasets.partial import refuse_existing
from deflow_vision.datasets.remote import RETRY_SECONDS, open_remote
from deflow_vision.datasets.schema import (
    SIDE_DTYPES,
    SPLITS,
    UNREADABLE,
    StoreError,
    missing_block,
    open_root,
    read_all,
    refuse_odd_description,
)
from deflow_vision.datasets.writer import StoreWriter
from deflow_vision.tasks import d4rl_task

__all__ = [
    "Split",
    "Store",
    "StoreError",
    "StoreWriter",
    "add_goals",
    "open_store",
    "refuse_existing",
    "verify",
]


@dataclass(frozen=True)
class Split:
    """One split of a store. The arrays are lazy: read contiguous rows with `schema.read_rows`.

    Attributes:
        name: "train" or "val".
        observations: zarr array (N, H, W, C) uint8 or (N, D) float32.
        actions: zarr array (N, A) float32; zero at the last state of an episode.
        episode_ends: (E,) int64, one past the last state of each episode, in memory.
        side: further zarr arrays by name, each (N, ...).
    """

    name: str
    observations: Any
    actions: Any
    episode_ends: np.ndarray
    side: dict[str, Any]
    _tasks: dict[str, tuple[Any, Any]]

    @property
    def num_states(self) -> int:
        """N, the number of stored states."""
        return int(self.observations.shape[0])

    @property
    def num_transitions(self) -> int:
        """N - E: a state that ends an episode starts no transition."""
        return self.num_states - len(self.episode_ends)

    @property
    def pixels(self) -> bool:
        """Whether observations are images."""
        return str(self.observations.dtype) == "uint8"

    def goals(self) -> list[str]:
        """The goals that have rewards and masks here."""
        return sorted(self._tasks)

    def rewards(self, goal: str) -> np.ndarray:
        """Reward of each stored state for `goal`, (N,) float32."""
        return read_all(self.labels(goal)[0])

    def masks(self, goal: str) -> np.ndarray:
        """0 where no bootstrap follows, else 1, for each stored state, (N,) float32."""
        return read_all(self.labels(goal)[1])

    def labels(self, goal: str) -> tuple[Any, Any]:
        """Rewards and masks for `goal`, two zarr arrays (N,); another goal is a `StoreError`."""
        if goal not in self._tasks:
            raise StoreError(
                f"{self.observations.store.root}: no rewards for the goal {goal!r} in "
                f"{self.name}/tasks; it has {', '.join(self.goals()) or 'none'}."
            )
        return self._tasks[goal]


@dataclass(frozen=True)
class Store:
    """An open, complete store.

    Attributes:
        path: its folder, or its address as text.
        attributes: what it says of itself: `source`, `env_id`, `seeds`, `versions`,
            `render_profile`, `notes`, `counts`, `digests`.
        splits: "train" and, unless None, "val".
    """

    path: Path | str
    attributes: dict[str, Any]
    splits: dict[str, Split | None]

    @property
    def train(self) -> Split:
        """The training split, which every store has."""
        split = self.splits["train"]
        assert split is not None
        return split

    @property
    def val(self) -> Split | None:
        """The validation split, if there is one."""
        return self.splits["val"]

    def size(self, part: str = "") -> int | None:
        """Bytes of its files, or of those below a group or an array; None where none are listed."""
        if isinstance(self.path, str):
            size: int | None = self.train.observations.store.size(part)
            return size
        return sum(file.stat().st_size for file in (self.path / part).rglob("*") if file.is_file())

    def close(self) -> None:
        """Give up on reads that wait for an address that does not answer."""
        self.train.observations.store.close()


def open_store(
    path: Path | str, cache: BlockCache | None = None, retry_seconds: float = RETRY_SECONDS
) -> Store:
    """Open a store and check what it says of itself and how its arrays are stored.

    Cheap: contents are checked by `verify`, and by each block's checksum as it is read.

    Args:
        path: the store's folder, or its address, such as s3://bucket/name.zarr.
        cache: keeps blocks of a store at an address.
        retry_seconds: how long an address that does not answer is asked again.

    Returns:
        The store, read-only.

    Raises:
        StoreError: it is missing, not a store, incomplete, of another version, lacks an array or
            has it in another form; or its address cannot be reached or read.
    """
    path = locate(path)
    if isinstance(path, str):
        root = open_remote(path, retry_seconds)
    elif path.exists():
        root = open_root(path, "r")
    else:
        raise StoreError(missing_message(path, path.stem))
    attributes = checked_attributes(path, root)
    if isinstance(path, str):
        root.store.keep(cache, attributes["digests"])
    splits = {
        name: _open_split(path, root, name, attributes) if name in attributes["counts"] else None
        for name in SPLITS
    }
    return Store(path, attributes, splits)


def verify(path: Path | str) -> list[str]:
    """Read a whole store and check every digest and every invariant.

    Args:
        path: the store's folder or address.

    Returns:
        What is wrong, a sentence each, with the array and the block; empty if all is well.
    """
    try:
        store = open_store(path)
    except StoreError as error:
        return [str(error)]
    problems = []
    root = open_remote(store.path) if isinstance(store.path, str) else open_root(store.path, "r")
    for name, digest in store.attributes["digests"].items():
        problems += check_array(root[name], digest)
    for split in store.splits.values():
        if split is not None:
            problems += _check_ends(split)
    return problems


def _open_split(path: Path | str, root: Any, name: str, attributes: dict[str, Any]) -> Split:
    counts, arrays = attributes["counts"][name], {}
    prefix = f"{name}/"
    for key in attributes["digests"]:
        if key.startswith(prefix):
            rows = counts["episodes" if key == f"{prefix}episode_ends" else "states"]
            arrays[key.removeprefix(prefix)] = _open_array(path, root, key, rows)
    goals = sorted({key.split("/")[1] for key in arrays if key.startswith("tasks/")})
    return Split(
        name=name,
        observations=arrays["observations"],
        actions=arrays["actions"],
        episode_ends=read_all(arrays["episode_ends"]),
        side={key: arrays[key] for key in arrays if key in SIDE_DTYPES},
        _tasks={g: (arrays[f"tasks/{g}/rewards"], arrays[f"tasks/{g}/masks"]) for g in goals},
    )


def _open_array(path: Path | str, root: Any, key: str, rows: int) -> Any:
    try:
        if isinstance(path, Path):
            refuse_odd_description(path / key)
        array = root[key]
    except StoreError:
        raise
    except KeyError as error:
        raise damaged(path, f"array {key} is missing") from error
    except UNREADABLE as error:
        raise damaged(path, f"array {key} cannot be opened: {error}") from error
    check_description(path, key, array, rows)
    # At an address each block would be a request: there one that is absent is an error when read.
    file = missing_block(array, path / key) if isinstance(path, Path) else None
    if file is not None:
        raise damaged(path, f"array {key} lacks the block {file.relative_to(path)}")
    return array


def _check_ends(split: Split) -> list[str]:
    ends = split.episode_ends
    if np.all(np.diff(ends, prepend=0) > 0) and ends[-1] == split.num_states:
        return []
    return [f"{split.name}/episode_ends does not rise to the {split.num_states} stored states"]


def missing_message(path: Path, dataset: str) -> str:
    """What to do where a dataset's store is missing: the ways to get this one.

    Args:
        path: where it should be.
        dataset: its name.
    """
    name = dataset.removesuffix("-v0")
    file = f"{dataset}.npz"
    if d4rl_task(dataset) is not None:
        file = f"FILE.hdf5 --dataset {dataset}"  # D4RL's own names of the files are others
    ways = [
        f"  python scripts/data.py download {name} --path {path}",
        f"  python scripts/data.py convert {file} --path {path}   (a file that you have)",
    ]
    if name.endswith(("-play", "-noisy")):
        ways.insert(0, f"  python scripts/data.py collect {name} --episodes 100 --path {path}")
    return f"there is no dataset at {path}. Ways to get it:\n" + "\n".join(ways)
