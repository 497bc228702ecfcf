"""The dataset card: what a store holds, in figures a researcher asks for first, and in pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from deflow_vision.datasets.drawable import advise_drawing
from deflow_vision.datasets.pick import pick_rows
from deflow_vision.datasets.store import Split, Store, open_store
from deflow_vision.types import UserError

_ABOUT_MASKS = (
    "Mask 0: no bootstrap follows the transition. For OGBench's goals that is success; the episode "
    "of the data may go on after it (not last). A last transition with mask 1 is a time limit: "
    "training bootstraps from the state after it."
)


def facts(store: Store) -> dict[str, str]:
    """What a store says of itself, and how much room it takes.

    Args:
        store: an open store.

    Returns:
        Name of a fact -> the fact, in words and figures.
    """
    attributes, observations = store.attributes, store.train.observations
    logical = sum(a.nbytes for split in _splits(store) for a in _arrays(store, split).values())
    disk = store.size()
    codec = observations.compressors[0].to_dict()["configuration"]
    return {
        "source": str(attributes["source"]),
        "seeds": _words(attributes["seeds"]),
        "observations": f"{_row(observations)}, {'pixels' if store.train.pixels else 'states'}",
        "frames": f"render profile {attributes['render_profile'] or 'unknown'}"
        if store.train.pixels
        else f"none; {advise_drawing(store)}",
        "actions": _row(store.train.actions),
        "simulator states": ", ".join(store.train.side) or "none",
        "versions": _words(attributes["versions"]),
        "size": (
            f"{_size(disk)} on disk for {_size(logical)}, {_times(logical, disk)} times smaller"
        ),
        "compression": (
            f"zstd level {codec['level']}, "
            f"{'every chunk with' if codec['checksum'] else 'WITHOUT'} a checksum"
        ),
        "schema": f"version {attributes['version']}",
        "checksum": checksum(store),
    }


def checksum(store: Store) -> str:
    """SHA-256 over the names and digests of all arrays: equal for equal data, in hexadecimal."""
    return digest_of(store.attributes["digests"])


def digest_of(digests: Mapping[str, str]) -> str:
    """SHA-256 over names and digests of arrays, in hexadecimal; of all of a store its checksum."""
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
    least, greatest = lengths.min(), lengths.max()
    steps = f"{least:,} to {greatest:,}, mean {lengths.mean():,.1f}"
    return {
        "episodes": f"{len(lengths):,}",
        "states": f"{split.num_states:,}",
        "transitions": f"{split.num_transitions:,}",
        "steps an episode": f"{least:,}" if least == greatest else steps,
    }


def goal_facts(split: Split, goal: str) -> dict[str, str]:
    """How good the data are for a goal, and how its masks lie to the ends of episodes.

    Args:
        split: of an open store.
        goal: one of `split.goals()`.

    Returns:
        `rewards`, least and greatest; their `mean`; `states`, the share of states with mask 0;
        `episodes`, the share of episodes that have such a state; `not last`, transitions with mask
        0 that another one of their episode follows; `last, mask 1`, episodes whose last transition
        has mask 1.
    """
    rewards, solved = split.rewards(goal), split.masks(goal) == 0
    starts = np.concatenate([[0], split.episode_ends[:-1]])
    reached = np.logical_or.reduceat(solved, starts)
    # The last state of an episode starts no transition; an episode of one state has none at all.
    last = split.episode_ends[split.episode_ends - starts > 1] - 2
    transitions = solved.copy()
    transitions[split.episode_ends - 1] = False
    return {
        "rewards": f"{rewards.min():g} to {rewards.max():g}",
        "mean": f"{rewards.mean():.3f}",
        "states": f"{solved.mean():.2%}",
        "episodes": f"{reached.mean():.1%}",
        "not last": f"{transitions.sum() - solved[last].sum():,}",
        "last, mask 1": f"{(~solved[last]).sum():,}",
    }


def card(path: Path | str) -> Group:
    """The card of a store, to print with rich, 80 columns wide or wider.

    Args:
        path: the store's folder or address.

    Raises:
        StoreError: it is missing, not a store, or incomplete.
    """
    store = open_store(path)
    about = _table(Column(style="bold"), Column(overflow="fold"), show_header=False)
    for key, value in facts(store).items():
        about.add_row(key, value)
    counts = _table("split", *(_right(name) for name in split_facts(store.train)))
    for name, split in _splits(store).items():
        counts.add_row(name, *split_facts(split).values())
    parts: list[RenderableType] = [
        Text(str(store.attributes["env_id"]), style="bold underline"),
        Text(str(path), style="dim"),
        *(Text(f"Note: {note}", style="yellow") for note in store.attributes.get("notes", [])),
        *(about, counts),
    ]
    if any(split.goals() for split in _splits(store).values()):
        parts += [_goals(store), Text(_ABOUT_MASKS, style="dim"), Text()]
    return Group(*parts, _sizes(store))


def _goals(store: Store) -> Table:
    shares = ("states,\nmask 0", "episodes,\nmask 0", "mask 0,\nnot last", "last,\nmask 1")
    table = _table("split", "goal", *map(_right, ("rewards", "mean", *shares)))
    for name, split in _splits(store).items():
        for goal in split.goals():
            table.add_row(name, goal, *goal_facts(split, goal).values())
    return table


def _sizes(store: Store) -> Table:
    """Each large array, and the rewards and masks of a split as one."""
    heads = ("row", "rows a\nchunk", "on disk", "times\nsmaller", "SHA-256\n(12 digits)")
    table = _table("array", *map(_right, heads))
    digests: Mapping[str, str] = store.attributes["digests"]
    for split in _splits(store):
        for name, array in _arrays(store, split).items():
            size = store.size(name)
            times = _times(array.nbytes, size)
            words = (name, _row(array), f"{array.chunks[0]:,}", _size(size), times)
            table.add_row(*words, digests[name][:12])
        tasks = {key: value for key, value in digests.items() if key.startswith(f"{split}/tasks/")}
        if tasks:
            size = store.size(f"{split}/tasks")
            words = (f"{split}/tasks", f"{len(tasks)} arrays", "", _size(size), "")
            table.add_row(*words, digest_of(tasks)[:12])
    return table


def sheet_frames(path: Path | str, episodes: int = 4, pictures: int = 6) -> np.ndarray:
    """Evenly spaced frames of evenly spaced training episodes, a run of `pictures` each.

    Args:
        path: a pixel store's folder or address.
        episodes: how many, fewer where there are fewer.
        pictures: of each.

    Returns:
        (episodes * pictures, H, W, C) uint8.

    Raises:
        UserError: the store holds states, not pixels.
        StoreError: there is no such store, or it is damaged.
    """
    split = _pixels(path)
    ends = split.episode_ends
    starts = np.concatenate([[0], ends[:-1]])
    chosen = _spread(0, len(ends) - 1, min(episodes, len(ends)))
    numbers = [_spread(starts[i], ends[i] - 1, pictures) for i in chosen]
    return pick_rows(split.observations, np.concatenate(numbers))


def film_frames(path: Path | str, at_most: int = 300) -> np.ndarray:
    """The first training episode for a film, evenly thinned where it is long.

    Args:
        path: a pixel store's folder or address.
        at_most: how many frames.

    Returns:
        (T, H, W, C) uint8.

    Raises:
        UserError: the store holds states, not pixels.
        StoreError: there is no such store, or it is damaged.
    """
    split = _pixels(path)
    length = int(split.episode_ends[0])
    return pick_rows(split.observations, _spread(0, length - 1, min(at_most, length)))


def _pixels(path: Path | str) -> Split:
    store = open_store(path)
    if store.train.pixels:
        return store.train
    raise UserError(f"{path} has no frames to show: {advise_drawing(store)}.")


def _spread(first: int, last: int, count: int) -> np.ndarray:
    return np.linspace(first, last, count).round().astype(int)


def _splits(store: Store) -> dict[str, Split]:
    return {name: split for name, split in store.splits.items() if split is not None}


def _arrays(store: Store, name: str) -> dict[str, Any]:
    """The large arrays of a split, by their name in the store."""
    split = _splits(store)[name]
    arrays = {"observations": split.observations, "actions": split.actions, **split.side}
    return {f"{name}/{key}": array for key, array in arrays.items()}


def _table(*columns: str | Column, show_header: bool = True) -> Table:
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        show_header=show_header,
        pad_edge=False,
        collapse_padding=True,
    )


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _row(array: Any) -> str:
    """Shape and dtype of a row, such as 64x64x3 uint8."""
    return f"{'x'.join(map(str, array.shape[1:]))} {array.dtype}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "not recorded"
    return "not recorded" if value is None else str(value)


def _times(logical: int, size: int | None) -> str:
    return "?" if size is None else f"{logical / size:.1f}"


def _size(count: int | None) -> str:
    """Bytes in the unit that suits them."""
    if count is None:
        return "?"
    power = min(3, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
