"""Which transitions make batch k: a pure function of (seed, k), wherever the frames live."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from deflow_vision.datasets.residency import (
    WINDOW_BLOCKS,
    MemoryPlan,
    Residency,
    plan_residency,
)
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import Split
from deflow_vision.datasets.stream import StreamSampler
from deflow_vision.datasets.transitions import Columns, Transitions
from deflow_vision.seeding import derive_seed
from deflow_vision.types import FrameBatch, UserError

__all__ = ["MemoryPlan", "RamSampler", "Sampler", "make_sampler", "plan_residency"]

_log = logging.getLogger(__name__)


class Sampler(Protocol):
    """Gives the batch of any step, in any order, on any number of processes.

    Attributes:
        transitions_per_epoch: the number of valid transitions of the split.
    """

    transitions_per_epoch: int

    def batch(self, step: int) -> FrameBatch:
        """This process's part of the batch of `step`: its streams' parts, in order."""
        ...

    def describe(self) -> str:
        """Where the frames live and how they mix, as a few lines of text."""
        ...

    def close(self) -> None:
        """Free threads and memory."""
        ...


def make_sampler(
    split: Split,
    goal: str,
    *,
    frame_stack: int,
    batch_size: int,
    seed: int,
    num_streams: int = 1,
    streams: Sequence[int] = (0,),
    residency: Residency = "auto",
    fields: Sequence[str] = (),
    discount: float = 0.99,
    budget_bytes: int | None = None,
    block_length: int | None = None,
    window_blocks: int = WINDOW_BLOCKS,
) -> Sampler:
    """A sampler of a split for one goal.

    Args:
        split: the split.
        goal: whose rewards and masks.
        frame_stack: frames of an observation.
        batch_size: transitions a step, over all streams.
        seed: the run's seed.
        num_streams: into how many parts a batch is cut; part of the run's configuration.
        streams: the parts that this process takes.
        residency: "ram", "stream", or "auto" (see `plan_residency`).
        fields: optional fields of the batch, see `Columns`.
        discount: gamma of `mc_returns`.
        budget_bytes: see `plan_residency`.
        block_length: see `plan_residency`.
        window_blocks: see `plan_residency`.

    Returns:
        The sampler; `close` it when done.

    Raises:
        UserError: sizes that do not fit each other or the memory.
        ValueError: an unknown field.
        StoreError: no such goal, or a damaged block.
    """
    index = Transitions(split.episode_ends, frame_stack)
    if batch_size % num_streams or batch_size < 1:
        raise UserError(f"a batch of {batch_size} does not divide into {num_streams} streams.")
    if not streams or not set(streams) <= set(range(num_streams)):
        raise UserError(f"streams {list(streams)}: they are 0 to {num_streams - 1}.")
    if len(index) < num_streams:
        raise UserError(f"{len(index)} transitions for {num_streams} streams.")
    plan = plan_residency(
        split,
        budget_bytes,
        residency=residency,
        frame_stack=frame_stack,
        num_streams=num_streams,
        streams=streams,
        block_length=block_length,
        window_blocks=window_blocks,
    )
    _log.info("%s split\n%s", split.name, plan.describe())
    columns = Columns(split, goal, index, fields, discount)
    if plan.residency == "ram":
        return RamSampler(
            split, columns, index, plan, batch_size // num_streams, seed=seed, streams=streams
        )
    return StreamSampler(
        split,
        columns,
        index,
        plan,
        batch_size // num_streams,
        seed=seed,
        num_streams=num_streams,
        streams=streams,
    )


class RamSampler:
    """All frames in memory; transitions uniform with replacement, as the reference draws them.

    Args:
        split: the split, read whole.
        columns: what a batch takes besides frames.
        index: the split's transitions.
        plan: for `describe`.
        rows: transitions a stream and step.
        seed: the run's seed.
        streams: the streams of this process.
    """

    def __init__(
        self,
        split: Split,
        columns: Columns,
        index: Transitions,
        plan: MemoryPlan,
        rows: int,
        *,
        seed: int,
        streams: Sequence[int],
    ) -> None:
        self.transitions_per_epoch = len(index)
        self._columns, self._index, self._plan = columns, index, plan
        self._rows, self._seed, self._streams = rows, seed, tuple(streams)
        self._observations = read_all(split.observations)

    def batch(self, step: int) -> FrameBatch:
        """This process's part of the batch of `step`."""
        transitions = np.concatenate(
            [
                np.random.default_rng(derive_seed(self._seed, "batch", step, stream)).integers(
                    self.transitions_per_epoch, size=self._rows
                )
                for stream in self._streams
            ]
        )
        states = self._index.states(transitions)
        return self._columns.batch(self._observations[self._index.frames(states)], states)

    def describe(self) -> str:
        """The memory plan, and how transitions are drawn."""
        drawn = f"uniform with replacement over {self.transitions_per_epoch:,} transitions"
        return f"{self._plan.describe()}\nmixing        {drawn}"

    def close(self) -> None:
        """Drop the frames."""
        self._observations = self._observations[:0]
