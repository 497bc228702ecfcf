"""Whether a store's states can be drawn, and as which pixel dataset."""

from __future__ import annotations

from collections.abc import Mapping

from deflow_vision.datasets.store import Split, Store, StoreError
from deflow_vision.tasks import resolve_dataset
from deflow_vision.types import UserError


def advise_drawing(store: Store) -> str:
    """For a store of states: the command that draws them, or why there is none.

    Args:
        store: without frames.
    """
    try:
        dataset = visual_dataset(store)
    except UserError:
        return "OGBench has no pixel task of them"
    needed = ["qpos", "qvel"] + ["button_states"] * ("cube" not in dataset)
    missing = [name for name in needed if name not in store.train.side]
    if missing:
        return f"without {' and '.join(missing)} they cannot be drawn"
    return f"`python scripts/data.py render {store.path}` draws them"


def visual_dataset(store: Store) -> str:
    """The pixel dataset of a store's environment: "visual-cube-double-play-v0" of its states.

    Raises:
        UserError: there is none.
    """
    have = str(store.attributes["env_id"])
    try:
        return resolve_dataset(have if have.startswith("visual-") else f"visual-{have}").dataset
    except UserError:
        raise UserError(
            f"{store.path} holds {have}, of which OGBench has no pixel task: the datasets of its "
            "cube, scene and puzzle environments can be drawn."
        ) from None


def check_states(store: Store, split: Split, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a split whose simulator states are missing, or those of another environment.

    Args:
        store: the store.
        split: one of its splits.
        shapes: what the environment's states consist of.

    Raises:
        StoreError: an array is missing or of another shape; the message names it.
    """
    for name, shape in shapes.items():
        if name not in split.side:
            raise StoreError(
                f"{store.path} has no {split.name}/{name}: its states cannot be set in the "
                "simulator. Convert the dataset's files with their simulator states, or collect it."
            )
        have = split.side[name].shape[1:]
        if have != shape:
            raise StoreError(
                f"{store.path}: rows of {split.name}/{name} have the shape {have}, those of "
                f"{store.attributes['env_id']} have {shape}. Is it another environment's?"
            )
