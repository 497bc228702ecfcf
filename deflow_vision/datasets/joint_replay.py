"""Online buffers of several environments, drawn from as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from deflow_vision.datasets.replay import Replay
from deflow_vision.types import FrameBatch


class JointReplay:
    """Transitions of several buffers, numbered one buffer after the other.

    Each environment writes its own buffer, so that an episode lies in one piece however many run
    at a time.

    Args:
        parts: the buffers.
    """

    def __init__(self, parts: Sequence[Replay]) -> None:
        self._parts = tuple(parts)

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return sum(map(len, self._parts))

    @property
    def num_episodes(self) -> int:
        """Episodes that ever began."""
        return sum(part.num_episodes for part in self._parts)

    @property
    def num_transitions(self) -> int:
        """Transitions that were ever added."""
        return sum(part.num_transitions for part in self._parts)

    @property
    def num_evicted(self) -> int:
        """Transitions that have left."""
        return sum(part.num_evicted for part in self._parts)

    def batch(self, numbers: Int64[np.ndarray, " B"]) -> FrameBatch:
        """The transitions of these numbers, from 0 to len - 1."""
        stops = np.cumsum([len(part) for part in self._parts])
        owners = np.searchsorted(stops, numbers, side="right")
        batches = [
            part.batch(numbers[owners == index] - (stops[index] - len(part)))
            for index, part in enumerate(self._parts)
        ]
        places = np.argsort(np.argsort(owners, kind="stable"))  # of the numbers, in the batches
        columns = zip(*batches, strict=True)
        return FrameBatch._make(
            None if column[0] is None else np.concatenate(column)[places] for column in columns
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the state of each buffer by its number."""
        return {str(index): part.state() for index, part in enumerate(self._parts)}
