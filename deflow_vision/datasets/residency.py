"""Where a split's frames live, decided from sizes before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deflow_vision.datasets.store import Split
from deflow_vision.types import UserError

Residency = Literal["auto", "device", "ram", "stream"]
WINDOW_BLOCKS = 128
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
        column_bytes: bytes of actions, rewards and masks, which are always in memory.
        block_length: frames of a block of `stream`.
        window_blocks: blocks of a window, over all streams.
        window_rows: frames that a window of one stream has room for.
        window_bytes: bytes of the two windows of each of this process's streams.
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
                f"windows at once ({self.window_bytes / _GIB:.2f} GiB)"
            )
        return "\n".join(lines)


def plan_residency(
    split: Split,
    budget_bytes: int | None = None,
    *,
    residency: Residency = "auto",
    frame_stack: int = 1,
    num_streams: int = 1,
    streams: Sequence[int] = (0,),
    block_length: int | None = None,
    window_blocks: int = WINDOW_BLOCKS,
    device_bytes: int = 0,
) -> MemoryPlan:
    """Choose where a split's frames live. Reads and allocates nothing.

    Args:
        split: the split.
        budget_bytes: what the sampler may hold; by default half of the memory available.
        residency: "auto" takes "device" where the observations fit into half of `device_bytes`,
            else "ram" where all fits the budget, else "stream".
        frame_stack: frames of an observation.
        num_streams: streams of the run.
        streams: those of this process.
        block_length: frames of a block; by default a chunk of the store.
        window_blocks: blocks of a window, over all streams. It does not follow the budget: the
            rows of a batch depend on it, and they must not depend on the machine.
        device_bytes: free memory of the device that is trained on, 0 where it has none of its own.

    Returns:
        The plan.

    Raises:
        UserError: an unknown residency, or one that does not fit into memory.
    """
    budget = available_memory() // 2 if budget_bytes is None else budget_bytes
    shape = tuple(split.observations.shape[1:])
    frame_bytes = int(np.prod(shape)) * np.dtype(split.observations.dtype).itemsize
    column_bytes = split.num_states * 4 * (split.actions.shape[1] + 2)
    length = block_length or int(split.observations.chunks[0])
    if length < 1 or window_blocks < 1:
        raise UserError(f"blocks of {length} frames, {window_blocks} a window: both must be >= 1.")
    blocks = min(max(1, window_blocks // num_streams), -(-split.num_states // length) + 1)
    window_rows = blocks * (min(length, split.num_states) + frame_stack)
    raw = split.num_states * frame_bytes
    limit = f"a budget of {budget / _GIB:.2f} GiB"
    device_limit = f"the device's free memory, {device_bytes / _GIB:.2f} GiB"
    chosen: Literal["device", "ram", "stream"]
    if residency == "auto":
        if raw <= device_bytes // 2:
            chosen, why = "device", f"all observations are within half of {device_limit}"
        elif raw + column_bytes <= budget:
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
        column_bytes=column_bytes,
        block_length=length,
        window_blocks=window_blocks,
        window_rows=window_rows,
        window_bytes=2 * len(streams) * window_rows * frame_bytes,
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
        )
    if chosen == "ram" and plan.total_bytes > 2 * budget:
        raise UserError(
            f"residency ram needs {plan.total_bytes / _GIB:.2f} GiB, and "
            f"{2 * budget / _GIB:.2f} GiB are available: take residency stream."
        )
    return plan


def available_memory() -> int:
    """Bytes of memory that this process can still take, within its container's limit."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # counts the page cache as available, which sysconf does not
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        available = min(available, int(text))
    return available
