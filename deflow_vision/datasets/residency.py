"""Where a split's frames live, decided from sizes before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deflow_vision.datasets.memory import available_memory
from deflow_vision.datasets.store import Split
from deflow_vision.types import UserError

Residency = Literal["auto", "device", "ram", "stream"]
_BLOCK_CHUNKS = 4  # a block reads one chunk more than it holds: that one is a quarter then
_WINDOW_BYTES = 384 << 20  # 32,768 frames of 64 x 64 x 3
_WINDOW_FRAMES = 1 << 19
_GIB = 1 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """What a sampler will hold in memory.

    Attributes:
        residency: "device", "ram" or "stream".
        why: what decided it, in words.
        num_frames: N.
        frame_shape: of a stored observation.
        frame_bytes: bytes of one.
        column_bytes: bytes of what is in memory whole besides frames: actions, rewards and masks,
            or, in `stream`, the returns of all states where the batch has them.
        block_length: frames of a block of `stream`.
        window_blocks: blocks of a window, over all streams.
        window_rows: frames that a window of one stream has room for.
        window_bytes: bytes of the two windows of each of this process's streams.
        decoded: frames that an epoch of `stream` decodes for each stored one.
    """

    residency: Literal["device", "ram", "stream"]
    why: str
    num_frames: int
    frame_shape: tuple[int, ...]
    frame_bytes: int
    column_bytes: int
    block_length: int
    window_blocks: int
    window_rows: int
    window_bytes: int
    decoded: float

    @property
    def raw_bytes(self) -> int:
        """Bytes of all observations, uncompressed."""
        return self.num_frames * self.frame_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of host memory that the sampler holds."""
        frames = {"device": 0, "ram": self.raw_bytes, "stream": self.window_bytes}
        return frames[self.residency] + self.column_bytes

    def describe(self) -> str:
        """The plan as a few lines of text."""
        shape = "x".join(map(str, self.frame_shape))
        lines = [
            f"observations  {self.num_frames:,} of {shape}, {self.raw_bytes / _GIB:.2f} GiB raw",
            f"residency     {self.residency}: {self.why}",
            f"in memory     {self.total_bytes / _GIB:.2f} GiB",
        ]
        if self.residency == "device":
            lines[-1] += f", and {self.raw_bytes / _GIB:.2f} GiB on the device"
        if self.residency == "stream":
            lines.append(
                f"blocks        {self.block_length} frames, {self.window_blocks} in a window, two "
                f"windows at once ({self.window_bytes / _GIB:.2f} GiB); an epoch decodes each "
                f"frame {self.decoded:.2f} times"
            )
        return "\n".join(lines)


def plan_residency(
    split: Split,
    budget_bytes: int | None = None,
    *,
    residency: Residency = "auto",
    frame_stack: int = 1,
    fields: Sequence[str] = (),
    num_streams: int = 1,
    streams: Sequence[int] = (0,),
    block_length: int | None = None,
    window_blocks: int | None = None,
    device_bytes: int = 0,
) -> MemoryPlan:
    """Choose where a split's frames live. Reads and allocates nothing.

    Args:
        split: the split.
        budget_bytes: what the sampler may hold; by default half of the memory available.
        residency: "auto" takes "device" where the observations fit into half of `device_bytes`,
            else "ram" where all fits the budget, else "stream".
        frame_stack: frames of an observation.
        fields: optional fields of the batch, see `Fields`.
        num_streams: streams of the run.
        streams: those of this process.
        block_length: frames of a block; by default four chunks of the store.
        window_blocks: blocks of a window, over all streams; by default what 384 MiB hold, and at
            most 524,288 frames. It does not follow the budget: the rows of a batch depend on it,
            and they must not depend on the machine.
        device_bytes: free memory of the device that is trained on, 0 where it has none of its own.

    Returns:
        The plan.

    Raises:
        UserError: an unknown residency, or one that does not fit into memory.
    """
    budget = available_memory() // 2 if budget_bytes is None else budget_bytes
    shape = tuple(split.observations.shape[1:])
    frame_bytes = int(np.prod(shape)) * np.dtype(split.observations.dtype).itemsize
    row_bytes = 4 * (split.actions.shape[1] + 2)
    chunk = int(split.observations.chunks[0])
    length = _BLOCK_CHUNKS * chunk if block_length is None else block_length
    if window_blocks is None:
        frames = min(_WINDOW_BYTES // frame_bytes, _WINDOW_FRAMES)
        window_blocks = max(1, frames // max(1, length))
    if length < 1 or window_blocks < 1:
        raise UserError(f"blocks of {length} frames, {window_blocks} a window: both must be >= 1.")
    blocks = min(max(1, window_blocks // num_streams), -(-split.num_states // length) + 1)
    window_rows = blocks * (min(length, split.num_states) + frame_stack)
    raw, all_rows = split.num_states * frame_bytes, split.num_states * row_bytes
    returns = 4 * split.num_states if "mc_returns" in fields else 0
    limit = f"a budget of {budget / _GIB:.2f} GiB"
    device_limit = f"the device's free memory, {device_bytes / _GIB:.2f} GiB"
    chosen: Literal["device", "ram", "stream"]
    if residency == "auto":
        if raw <= device_bytes // 2:
            chosen, why = "device", f"all observations are within half of {device_limit}"
        elif raw + all_rows <= budget:
            chosen, why = "ram", f"all observations are within {limit}"
        else:
            chosen, why = "stream", f"all observations are more than {limit}"
    elif residency in ("device", "ram", "stream"):
        chosen, why = residency, "as asked"
    else:
        raise UserError(f"residency {residency!r}: the choices are auto, device, ram and stream.")
    plan = MemoryPlan(
        residency=chosen,
        why=why,
        num_frames=split.num_states,
        frame_shape=shape,
        frame_bytes=frame_bytes,
        column_bytes=returns + (0 if chosen == "stream" else all_rows),
        block_length=length,
        window_blocks=window_blocks,
        window_rows=window_rows,
        window_bytes=2 * len(streams) * window_rows * (frame_bytes + row_bytes),
        decoded=_decoded(split.num_states, length, chunk, frame_stack),
    )
    if chosen == "device" and raw > device_bytes:
        raise UserError(
            f"residency device needs {raw / _GIB:.2f} GiB, more than {device_limit}: take "
            "residency ram or stream."
            if device_bytes
            else "residency device keeps the observations on a GPU, and this run has none: take "
            "residency ram or stream."
        )
    if chosen == "stream" and plan.total_bytes > budget:
        raise UserError(
            f"windows of {window_blocks} blocks of {length} frames need "
            f"{plan.total_bytes / _GIB:.2f} GiB, more than {limit}: lower "
            "--data.window-blocks or --data.block-length."
            + (f" The returns of all states take {returns / _GIB:.2f} GiB." if returns else "")
        )
    if chosen == "ram" and plan.total_bytes > 2 * budget:
        raise UserError(
            f"residency ram needs {plan.total_bytes / _GIB:.2f} GiB, and "
            f"{2 * budget / _GIB:.2f} GiB are available: take residency stream."
        )
    return plan


def _decoded(num_states: int, length: int, chunk: int, frame_stack: int) -> float:
    """Frames in the chunks that blocks need, for each frame stored."""
    ends = np.minimum(np.arange(length, num_states + length, length), num_states)
    starts = np.maximum(np.arange(len(ends)) * length - frame_stack, 0)
    chunks = (ends - 1) // chunk - starts // chunk + 1
    return float(np.minimum(chunks * chunk, num_states).sum() / num_states)
