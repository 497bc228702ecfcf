"""The feed of a pixel store, augmented, as training makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deflow_vision.datasets.augment import Augmentation, AugmentConfig
from deflow_vision.datasets.sampler import make_sampler
from deflow_vision.datasets.store import open_store
from deflow_vision.timing.machine import device
from deflow_vision.training.feed import Feed

STACK = 3


def pixel_feed(store: Path, batch_size: int, agent: Any) -> Feed:
    """Streamed batches of `task1`.

    Args:
        store: of pixels.
        batch_size: transitions of a batch.
        agent: draws its noises.
    """
    sampler = make_sampler(
        open_store(store).train,
        "task1",
        frame_stack=STACK,
        batch_size=batch_size,
        seed=0,
        residency="stream",
    )
    return Feed(
        sampler,
        Augmentation(AugmentConfig(), 0),
        agent,
        device(),
        seed=0,
        streams=(0,),
        stream_size=batch_size,
    )
