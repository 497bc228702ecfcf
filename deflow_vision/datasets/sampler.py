"""Which transitions make batch k: a pure function of (seed, k), wherever the frames live."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from deflow_vision.datasets.draws import Epochs, Uniform
from deflow_vision.datasets.mixing import measure_mixing
from deflow_vision.datasets.planes import Spare, empty_rows
from deflow_vision.datasets.remote import uncached
from deflow_vision.datasets.residency import MemoryPlan, Residency, plan_residency
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import Split
from deflow_vision.datasets.stream import StreamSampler, gather
from deflow_vision.datasets.transitions import Fields, Transitions
from deflow_vision.types import FrameBatch, UserError

__all__ = ["MemoryPlan", "Sampler", "UniformSampler", "make_sampler", "plan_residency"]

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

    def transitions(self, step: int) -> Int64[np.ndarray, " B"]:
        """The numbers of that batch's transitions among the split's valid ones."""
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
    reward_scale: float = 1.0,
    reward_shift: float = 0.0,
    budget_bytes: int | None = None,
    block_length: int | None = None,
    window_blocks: int | None = None,
    device_bytes: int = 0,
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
        residency: "device", "ram", "stream", or "auto" (see `plan_residency`). With "device" the
            batches hold the numbers of frames: the caller has the frames there.
        fields: optional fields of the batch, see `Fields`.
        discount: gamma of `mc_returns`.
        reward_scale: see `Fields`.
        reward_shift: see `Fields`.
        budget_bytes: see `plan_residency`.
        block_length: see `plan_residency`.
        window_blocks: see `plan_residency`.
        device_bytes: see `plan_residency`.

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
        fields=fields,
        num_streams=num_streams,
        streams=streams,
        block_length=block_length,
        window_blocks=window_blocks,
        device_bytes=device_bytes,
    )
    extra = Fields(split, goal, index, fields, discount, reward_scale, reward_shift)
    rows = batch_size // num_streams
    uniform = Uniform(index, rows, seed=seed, streams=streams)
    if plan.residency != "stream":
        _log.info(
            "%s split\n%s\nmixing        uniform with replacement over %s transitions",
            *(split.name, plan.describe(), f"{len(index):,}"),
        )
        return UniformSampler(split, extra, uniform, plan)
    epochs = Epochs(
        index,
        rows,
        block_length=plan.block_length,
        window_blocks=plan.window_blocks,
        seed=seed,
        num_streams=num_streams,
        streams=streams,
    )
    mixing = measure_mixing(epochs).describe(measure_mixing(uniform))
    _log.info("%s split\n%s\nmixing        %s", split.name, plan.describe(), mixing)
    return StreamSampler(split, extra, epochs, plan)


class UniformSampler:
    """Uniform draws, with all frames in memory, or on the device already.

    Args:
        split: the split, read whole where its frames are held here.
        fields: what a batch takes besides frames, read whole.
        draws: which transitions make a batch.
        plan: "ram", or "device", where a batch has the numbers of the frames in their place.
    """

    def __init__(self, split: Split, fields: Fields, draws: Uniform, plan: MemoryPlan) -> None:
        self.transitions_per_epoch = len(draws.index)
        self._fields, self._rows, self._draws = fields, fields.read_all(), draws
        self._spare = Spare()
        self._observations: np.ndarray | None = None
        if plan.residency == "ram":
            rows = empty_rows(split.observations.shape, split.observations.dtype)
            self._observations = read_all(uncached(split.observations), rows)

    def batch(self, step: int) -> FrameBatch:
        """This process's part of the batch of `step`."""
        states = self._draws.states(step)
        places = self._draws.index.frames(states)
        frames = (
            places
            if self._observations is None
            else gather(self._observations, places, self._spare)
        )
        return self._fields.batch(frames, states, self._rows, states)

    def transitions(self, step: int) -> Int64[np.ndarray, " B"]:
        """The numbers of that batch's transitions."""
        return self._draws.index.before(self._draws.states(step))

    def close(self) -> None:
        """Drop the frames."""
        self._observations = None
