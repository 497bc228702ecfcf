"""Adding rewards and masks of goals to a store that is complete."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from deflow_vision.datasets.address import refuse_address
from deflow_vision.datasets.checks import checked_attributes
from deflow_vision.datasets.columns import fit_rows
from deflow_vision.datasets.schema import (
    SEAL,
    StoreError,
    create_array,
    open_root,
    write_digests,
)
from deflow_vision.files import seal

Labels = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Goal -> its rewards and masks, one each for every state."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_ZARRS_OWN = ("c", "zarr.json")  # names of files and folders in a Zarr array or group


def check_goals(goals: Iterable[str]) -> None:
    """Refuse goals whose names do not fit for folders of a store.

    Raises:
        StoreError: one of them.
    """
    for goal in goals:
        if not _NAME.fullmatch(goal) or goal in _ZARRS_OWN:
            raise StoreError(
                f"goal {goal!r}: name it by letters, digits, '_', '.' and '-', a letter or a digit "
                f"first; not {' nor '.join(_ZARRS_OWN)}."
            )


def add_goals(path: Path, goals: Mapping[str, Labels]) -> None:
    """Write rewards and masks of goals into a finished store; a goal that exists is replaced.

    A goal counts only once its digests are recorded, so that it is either complete or absent.

    Args:
        path: the store's folder.
        goals: split -> goal -> (rewards, masks), each (N,), aligned with the stored states.

    Raises:
        StoreError: not a store, or a name, a length or a value that does not fit; then no goal is
            written.
    """
    refuse_address(path)
    path = Path(path)
    root = open_root(path, "r+")
    attributes = checked_attributes(path, root)
    fitted = {}
    for split, labels in goals.items():
        check_goals(labels)
        if split not in attributes["counts"]:
            raise StoreError(f"{path} has no split {split!r}.")
        count = attributes["counts"][split]["states"]
        for goal, pair in labels.items():
            values = fitted[f"{split}/tasks/{goal}"] = fit_labels(f"{split}/{goal}", *pair)
            for name, value in values.items():
                if len(value) != count:
                    raise StoreError(f"{split}/{goal}: {len(value)} {name} for {count} states.")
    for place, values in fitted.items():
        attributes["digests"] = {
            name: digest
            for name, digest in attributes["digests"].items()
            if not name.startswith(f"{place}/")
        }
        root.attrs.put(seal(attributes, SEAL))
        shutil.rmtree(path / place, ignore_errors=True)
        group = root.create_group(place)
        for name, value in values.items():
            create_array(group, name, (), "float32").append(value)
        attributes["digests"] |= write_digests(group)
        root.attrs.put(seal(attributes, SEAL))


def goal_rows(labels: Labels, length: int) -> dict[str, np.ndarray]:
    """The rows of an episode's goals by array, the last one repeated where it has only actions'.

    Args:
        labels: goal -> (rewards, masks), (length,) or (length - 1,) each.
        length: the episode's states.

    Raises:
        StoreError: see `fit_labels`.
    """
    rows = {}
    for goal, pair in labels.items():
        for name, value in fit_labels(f"tasks/{goal}", *pair).items():
            last = value[-1:] if len(value) == length - 1 else value[:0]
            rows[f"tasks/{goal}/{name}"] = np.concatenate([value, last])
    return rows


def fit_labels(where: str, rewards: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Check a goal's rewards and masks: finite vectors, masks of 0 and 1.

    Args:
        where: the goal, for messages.
        rewards: (N,).
        masks: (N,).

    Returns:
        Both as float32, by name.

    Raises:
        StoreError: a shape or a value does not fit.
    """
    values = {
        name: fit_rows(f"{where}/{name}", value, (), "float32")
        for name, value in (("rewards", rewards), ("masks", masks))
    }
    if not np.isin(values["masks"], (0, 1)).all():
        raise StoreError(f"{where}: masks other than 0 and 1.")
    return values
