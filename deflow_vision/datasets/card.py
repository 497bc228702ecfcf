"""The dataset card: what a store holds, in figures a researcher asks for first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Column, Table

from deflow_vision.datasets.schema import read_rows
from deflow_vision.datasets.store import Split, Store, open_store
from deflow_vision.types import UserError

_MIB = 2**20


def first_episode_frames(path: Path) -> np.ndarray:
    """The frames of a pixel store's first training episode, (T, H, W, 3) uint8.

    Raises:
        UserError: the store holds states, not pixels.
        StoreError: there is no such store, or it is damaged.
    """
    split = open_store(path).train
    if not split.pixels:
        raise UserError(f"{path} holds states, which have no frames to show.")
    return read_rows(split.observations, 0, int(split.episode_ends[0]))


def facts(store: Store) -> dict[str, str]:
    """What a store says of itself, and how much room it takes.

    Args:
        store: an open store.

    Returns:
        Name of a fact -> the fact, in words and figures.
    """
    attributes = store.attributes
    arrays = _arrays(store)
    logical = sum(array.nbytes for array in arrays.values())
    frames = [name for name in arrays if name.endswith("/observations")]
    frame_bytes = sum(arrays[name].nbytes for name in frames)
    frame_disk = sum(_disk_bytes(store.path / name) for name in frames)
    disk = _disk_bytes(store.path)
    return {
        "dataset": str(attributes["env_id"]),
        "source": str(attributes["source"]),
        "seeds": str(attributes["seeds"]),
        "observations": f"{store.train.observations.shape[1:]} {store.train.observations.dtype}",
        "action_dim": str(store.train.actions.shape[1]),
        "side arrays": ", ".join(store.train.side) or "none",
        "render profile": str(attributes["render_profile"] or "none: no pixels"),
        "versions": ", ".join(f"{key} {value}" for key, value in attributes["versions"].items()),
        "in memory": f"{logical / _MIB:.1f} MiB",
        "on disk": f"{disk / _MIB:.1f} MiB, {logical / disk:.1f} times smaller",
        "observations on disk": (
            f"{frame_disk / _MIB:.1f} MiB, {frame_bytes / frame_disk:.1f} times smaller"
        ),
        "checksum": checksum(store),
    }


def checksum(store: Store) -> str:
    """SHA-256 over the names and digests of all arrays: equal for equal data, in hexadecimal."""
    digests: Mapping[str, str] = store.attributes["digests"]
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def split_facts(split: Split) -> dict[str, str]:
    """Counts and episode lengths of a split.

    Args:
        split: of an open store.

    Returns:
        Name of a fact -> the fact.
    """
    lengths = np.diff(split.episode_ends, prepend=0) - 1
    return {
        "episodes": f"{len(lengths):,}",
        "states": f"{split.num_states:,}",
        "transitions": f"{split.num_transitions:,}",
        "steps an episode": f"{lengths.min():,} to {lengths.max():,}, mean {lengths.mean():,.1f}",
    }


def goal_facts(split: Split, goal: str) -> dict[str, str]:
    """How good the data are for a goal.

    Args:
        split: of an open store.
        goal: one of `split.goals()`.

    Returns:
        `rewards`, least and greatest; their `mean`; `success`, the share of states with mask 0;
        `episodes`, the share of episodes that have such a state.
    """
    rewards, solved = split.rewards(goal), split.masks(goal) == 0
    starts = np.concatenate([[0], split.episode_ends[:-1]])
    reached = np.logical_or.reduceat(solved, starts)
    return {
        "rewards": f"{rewards.min():g} to {rewards.max():g}",
        "mean": f"{rewards.mean():.3f}",
        "success": f"{solved.mean():.2%}",
        "episodes": f"{reached.mean():.1%}",
    }


def card(path: Path) -> Group:
    """The card of a store, to print with rich.

    Args:
        path: the store's folder.

    Raises:
        StoreError: it is missing, not a store, or incomplete.
    """
    store = open_store(path)
    about = Table("", Column(overflow="fold"), title=str(path), show_header=False)
    for key, value in facts(store).items():
        about.add_row(key, value)
    counts = Table("split", *split_facts(store.train))
    goals = Table(
        *("split", "goal", "rewards", "mean", "states that meet it", "episodes that do"),
        title="Goals",
    )
    for name, split in store.splits.items():
        if split is not None:
            counts.add_row(name, *split_facts(split).values())
            for goal in split.goals():
                goals.add_row(name, goal, *goal_facts(split, goal).values())
    digests = Table("array", "SHA-256, first 16 digits", title="Checksums")
    for key in sorted(store.attributes["digests"]):
        digests.add_row(key, store.attributes["digests"][key][:16])
    return Group(about, counts, goals, digests)


def _arrays(store: Store) -> dict[str, Any]:
    """The large arrays of a store, by their name in it."""
    arrays = {}
    for name, split in store.splits.items():
        if split is not None:
            arrays[f"{name}/observations"] = split.observations
            arrays[f"{name}/actions"] = split.actions
            arrays |= {f"{name}/{key}": array for key, array in split.side.items()}
    return arrays


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
