"""Adding rewards and masks of goals to a store that is complete."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deflow_vision.datasets.address import refuse_address
from deflow_vision.datasets.schema import StoreError, array_digests, create_array, open_root

Labels = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Goal -> its rewards and masks, one each for every state."""


def add_goals(path: Path, goals: Mapping[str, Labels]) -> None:
    """Write rewards and masks of goals into a finished store; a goal that exists is replaced.

    A goal counts only once its digests are recorded, so that it is either complete or absent.

    Args:
        path: the store's folder.
        goals: split -> goal -> (rewards, masks), each (N,), aligned with the stored states.

    Raises:
        StoreError: not a store, or a length or a value that does not fit.
    """
    refuse_address(path)
    path = Path(path)
    root = open_root(path, "r+")
    attributes = dict(root.attrs)
    for split, labels in goals.items():
        if split not in attributes.get("counts", {}):
            raise StoreError(f"{path} has no split {split!r}.")
        count = attributes["counts"][split]["states"]
        for goal, pair in labels.items():
            values = fit_labels(f"{split}/{goal}", *pair)
            for name, value in values.items():
                if len(value) != count:
                    raise StoreError(f"{split}/{goal}: {len(value)} {name} for {count} states.")
            folder = path / split / "tasks" / goal
            prefix = f"{split}/tasks/{goal}/"
            attributes["digests"] = {
                name: digest
                for name, digest in attributes["digests"].items()
                if not name.startswith(prefix)
            }
            root.attrs.put(attributes)
            shutil.rmtree(folder, ignore_errors=True)
            group = root.create_group(f"{split}/tasks/{goal}")
            for name, value in values.items():
                create_array(group, name, (), "float32").append(value)
            attributes["digests"] |= array_digests(path, folder)
            root.attrs.put(attributes)


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
    values = {"rewards": np.asarray(rewards, np.float32), "masks": np.asarray(masks, np.float32)}
    for name, value in values.items():
        if value.ndim != 1:
            raise StoreError(f"{where}: {name} of shape {value.shape}; it should be a vector.")
        if not np.isfinite(value).all():
            raise StoreError(f"{where}: {name} that are not finite.")
    if not np.isin(values["masks"], (0, 1)).all():
        raise StoreError(f"{where}: masks other than 0 and 1.")
    return values
