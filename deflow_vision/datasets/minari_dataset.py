"""Minari's datasets, as they lie in its local folder, into stores; the only module that imports it.

A Minari episode holds every state, the last included, so it is a store's episode as it stands.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple

from deflow_vision import __version__
from deflow_vision.datasets.episodes import Episode, write_episodes
from deflow_vision.datasets.schema import StoreError
from deflow_vision.datasets.store import StoreWriter

_GOAL = "default"
_WIDEST = 1e6  # between bounds of an action; wider ones stand for none, and leave nothing to scale
# Minari has no error class of its own for what is damaged.
_ERRORS = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
)
_OTHERS = {
    "antmaze": "Minari's antmaze is not D4RL's: recorded anew, of another ant, in mazes that lie "
    "another way round, with episodes that go on at the goal. Results do not compare.",
    "pen": "Minari's pen is not D4RL's: its episodes have 200 steps, D4RL's 100, and do not end "
    "where the pen is dropped. Results do not compare.",
}


def convert_minari(dataset_id: str, path: Path) -> None:
    """Convert a dataset of Minari's local folder into a store, without a validation split.

    Observations of several parts are flattened in the order of `gymnasium.wrappers.
    FlattenObservation`, and actions scaled from their bounds to [-1, 1] and clipped there; the
    store's notes say so.

    Args:
        dataset_id: such as "D4RL/pen/human-v2"; it is the store's `env_id` too.
        path: the store's folder, which must not exist.

    Raises:
        StoreError: `path` exists, or the dataset is not there, damaged, or of spaces that a store
            cannot hold.
    """
    dataset = _load(dataset_id)
    space, actions = dataset.observation_space, dataset.action_space
    pixels = isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3
    parts = [] if pixels else list(_parts(dataset_id, space))
    _check_actions(dataset_id, actions)
    writer = StoreWriter(
        path,
        source=f"Minari's {dataset_id}",
        env_id=dataset_id,
        seeds=None,
        observation_shape=space.shape if pixels else (sum(size for _, size in parts),),
        observation_dtype="uint8" if pixels else "float32",
        action_dim=int(np.prod(actions.shape)),
        goals=[_GOAL],
        versions={
            "deflow-vision": __version__,
            "minari": importlib.metadata.version("minari"),
            "minari, when recorded": dataset.minari_version,
        },
        notes=_notes(dataset, parts),
        plan=_state_of(dataset),
    )
    with writer:
        todo = dataset.episode_indices[writer.episodes_done("train") :]
        episodes = (("train", episode) for episode in _read(dataset, todo, pixels))
        write_episodes(writer, {}, episodes, total=dataset.total_episodes, title=dataset_id)


def _load(dataset_id: str) -> Any:
    import minari

    try:
        return minari.load_dataset(dataset_id)
    except FileNotFoundError as error:
        there = ", ".join(minari.list_local_datasets()) or "none"
        raise StoreError(
            f"Minari has no dataset {dataset_id!r} on this machine, it has: {there}. "
            f"`minari download {dataset_id}` brings it; MINARI_DATASETS_PATH is its folder."
        ) from error
    except _ERRORS as error:
        raise _damaged(dataset_id, error) from error


def _state_of(dataset: Any) -> dict[str, int]:
    """What tells that the dataset is still the one that a conversion began with."""
    files = [file.stat() for file in Path(dataset.storage.data_path).rglob("*") if file.is_file()]
    return {
        "files": len(files),
        "bytes": sum(file.st_size for file in files),
        "changed": max(file.st_mtime_ns for file in files),
    }


def _read(dataset: Any, indices: np.ndarray, pixels: bool) -> Iterator[Episode]:
    space, actions = dataset.observation_space, dataset.action_space
    episodes = iter(dataset.iterate_episodes(indices))
    for index in indices:
        try:
            episode = next(episodes)
            rewards = np.asarray(episode.rewards, np.float32)
            length = len(rewards)
            observations = episode.observations if pixels else _flatten(space, episode.observations)
            taken = np.reshape(episode.actions, (length, -1)).astype(np.float64)
            masks = 1 - np.reshape(episode.terminations, length).astype(np.float32)
        except _ERRORS as error:
            raise _damaged(f"{dataset.id}, episode {index}", error) from error
        if len(observations) != length + 1:
            raise _damaged(
                f"{dataset.id}, episode {index}",
                f"{len(observations)} observations for {length} steps",
            )
        values = {"observations": observations, "actions": taken, "rewards": rewards}
        for key, rows in values.items():
            if not np.isfinite(rows).all():
                raise _damaged(f"{dataset.id}, episode {index}", f"{key} that are not finite")
        yield Episode(observations, _scaled(actions, taken), {}, {_GOAL: (rewards, masks)})


def _check_actions(dataset_id: str, actions: Space) -> None:
    """Refuse actions that cannot be scaled from their bounds."""
    if not isinstance(actions, Box) or not np.isfinite([actions.low, actions.high]).all():
        raise StoreError(
            f"{dataset_id}: its actions are {actions}; a store holds bounded vectors of numbers."
        )
    for number, (low, high) in enumerate(zip(*_bounds(actions), strict=True)):
        if not low < high <= low + _WIDEST:
            raise StoreError(
                f"{dataset_id}: action {number} lies between {low:g} and {high:g}, which leaves "
                "nothing to scale to [-1, 1]. Write its episodes with StoreWriter, without actions "
                "that cannot vary, and scaled by the bounds that the others really have."
            )


def _parts(dataset_id: str, space: Space, name: str = "") -> Iterator[tuple[str, int]]:
    """Name and size of each vector of an observation, in the order in which they are joined."""
    if isinstance(space, Dict | Tuple):
        items = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        for key, part in items:
            yield from _parts(dataset_id, part, f"{name}.{key}".strip("."))
    elif isinstance(space, Box) and not (space.dtype == np.uint8 and len(space.shape) > 1):
        yield name or "observation", int(np.prod(space.shape))
    else:
        raise StoreError(
            f"{dataset_id}: its observations have {name or 'as their only part'} {space}; a store "
            "holds pictures (H, W, C) of uint8 alone, or numbers."
        )


def _flatten(space: Space, values: Any) -> np.ndarray:
    """Observations of several steps as (S, D) float32."""
    if isinstance(space, Box):
        rows = np.asarray(values)
        return rows.reshape(len(rows), -1).astype(np.float32)
    items = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
    return np.concatenate([_flatten(part, values[key]) for key, part in items], axis=1)


def _scaled(space: Box, actions: np.ndarray) -> np.ndarray:
    """Actions (T, A) in the space's bounds, brought to [-1, 1], as float32."""
    low, high = _bounds(space)
    scaled: np.ndarray = (2 * (actions - low) / (high - low) - 1).clip(-1, 1)
    return scaled.astype(np.float32)


def _bounds(actions: Box) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest actions, (A,) each."""
    return actions.low.ravel().astype(np.float64), actions.high.ravel().astype(np.float64)


def _unit(actions: Box) -> bool:
    return bool((actions.low == -1).all() and (actions.high == 1).all())


def _notes(dataset: Any, parts: list[tuple[str, int]]) -> list[str]:
    notes = []
    if len(parts) > 1:
        joined = ", ".join(f"{name} ({size})" for name, size in parts)
        notes.append(
            f"An observation is, in this order (that of gymnasium.wrappers.FlattenObservation): "
            f"{joined}."
        )
    actions = dataset.action_space
    if _unit(actions):
        notes.append("Actions beyond [-1, 1] are clipped.")
    else:
        notes.append(
            f"Actions are scaled to [-1, 1] from {actions}, and those beyond its bounds clipped."
        )
    recorded = dataset.env_spec.id if dataset.env_spec is not None else "an environment not named"
    notes.append(
        f"Recorded in {recorded}. Train on it with --env module:factory, a function that returns "
        "that environment with these observations and a time limit."
    )
    if dataset.id.startswith("D4RL/"):
        notes += [note for name, note in _OTHERS.items() if f"/{name}/" in dataset.id]
    return notes


def _damaged(what: str, problem: object) -> StoreError:
    return StoreError(
        f"Minari's {what} is damaged or not what Minari {importlib.metadata.version('minari')} "
        f"writes: {problem}. Delete and download it again (`minari delete`, `minari download`)."
    )
