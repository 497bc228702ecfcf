"""From a sampler's frames to what an agent takes: batch k and noises k, on the device.

Both are pure functions of (seed, k): the transitions, the augmentation's coin and offsets, the
agent's noises. A run's global batch is the concatenation of `num_streams` parts, each with draws of
its own, so that the same batch comes out however many processes share the streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deflow_vision.agents.base import Agent
from deflow_vision.datasets.augment import Augmentation
from deflow_vision.datasets.mixture import Mixture, Replacement
from deflow_vision.datasets.sampler import Sampler
from deflow_vision.datasets.schema import map_blocks, read_rows
from deflow_vision.seeding import derive_seed
from deflow_vision.types import Batch, FrameBatch


class Feed:
    """Batches and noises by step, the next ones made ahead by a thread.

    On a CPU the thread makes all of it; for a GPU it reads and draws, and the rest is done there.

    Args:
        sampler: makes the host's part; it must be called for one step at a time.
        augmentation: acts on frames on the device; None for state observations.
        agent: draws its own noises.
        device: where batches go.
        seed: of the noises; the sampler and the augmentation have theirs.
        streams: this process's parts of the global batch.
        stream_size: transitions of one part.
        resident: the frames, where the sampler's batches hold their numbers.
        online: which rows of a batch come from the online buffer.
        online_from: the first update that asks it.
    """

    def __init__(
        self,
        sampler: Sampler,
        augmentation: Augmentation | None,
        agent: Agent,
        device: torch.device,
        *,
        seed: int,
        streams: Sequence[int],
        stream_size: int,
        resident: ResidentFrames | None = None,
        online: Mixture | None = None,
        online_from: int = 0,
    ) -> None:
        self._sampler = sampler
        self._augmentation = augmentation
        self._agent = agent
        self._device = device
        self._seed = seed
        self._streams = streams
        self._stream_size = stream_size
        self._resident = resident
        self._online, self._online_from = online, online_from
        # kornia draws from torch's global generator, which is the training thread's.
        kornia = augmentation is not None and augmentation.config.kornia
        self._whole = device.type == "cpu" and not kornia
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: dict[int, Future[tuple[FrameBatch | Batch, Any]]] = {}
        self.seconds_waited = 0.0

    def __call__(self, step: int) -> tuple[Batch, Any]:
        """The batch and the noises of update `step`, for this process."""
        start = perf_counter()
        wanted = (step, step + 1)  # both before one is waited for: the thread has no pause
        for old in self._ahead.keys() - set(wanted):
            self._ahead.pop(old).cancel()
        for new in wanted:
            if new not in self._ahead:
                self._ahead[new] = self._reader.submit(self._read, new)
        batch, noises = self._ahead.pop(step).result()
        self.seconds_waited += perf_counter() - start
        if isinstance(batch, FrameBatch):
            batch = self._batch(batch, step)
        return batch, type(noises)(*map(self._to_device, noises))

    def close(self) -> None:
        """Stop reading ahead and let the sampler go."""
        self._reader.shutdown(cancel_futures=True)
        self._sampler.close()

    def _read(self, step: int) -> tuple[FrameBatch | Batch, Any]:
        host, noises = self._sampler.batch(step), self._noises(step)
        # What the buffer holds at this step is not certain yet, so its part is drawn when asked.
        ahead = self._whole and (self._online is None or step < self._online_from)
        if self._device.type == "cuda":
            host, noises = _pinned(host), _pinned(noises)
        return (self._batch(host, step) if ahead else host), noises

    def _batch(self, host: FrameBatch, step: int) -> Batch:
        replaced = None
        if self._online is not None and step >= self._online_from:
            replaced = self._online(step)
        if replaced is not None:
            host = _replace(host, replaced, frames=self._resident is None)
        frames = self._to_device(host.frames)
        if self._resident is not None:
            frames = self._resident(frames)
            if replaced is not None:
                frames[self._to_device(replaced.rows)] = self._to_device(replaced.batch.frames)
        if self._augmentation is not None:
            frames = self._augmentation(frames, step)
        return Batch(
            observations=stack_frames(frames[:, :-1]),
            actions=self._to_device(host.actions),
            rewards=self._to_device(host.rewards),
            masks=self._to_device(host.masks),
            next_observations=stack_frames(frames[:, 1:]),
            next_actions=None if host.next_actions is None else self._to_device(host.next_actions),
            mc_returns=None if host.mc_returns is None else self._to_device(host.mc_returns),
        )

    def _noises(self, step: int) -> Any:
        parts: list[Any] = []
        for stream in self._streams:
            seed = derive_seed(self._seed, "noise", step, stream)
            generator = torch.Generator().manual_seed(seed)
            parts.append(self._agent.sample_noises(self._stream_size, generator))
        columns = zip(*parts, strict=True)
        return type(parts[0])(*map(torch.cat, columns))

    def _to_device(self, values: np.ndarray | Tensor) -> Tensor:
        tensor = torch.as_tensor(values)
        return tensor.to(self._device, non_blocking=tensor.device.type == "cpu")


def _pinned(values: Any) -> Any:
    """A tuple's arrays in page-locked memory, so that their copy overlaps with computation."""

    def pin(array: np.ndarray | Tensor | None) -> np.ndarray | Tensor | None:
        if array is None or isinstance(array, Tensor):
            return None if array is None else array.pin_memory()
        pinned: np.ndarray = torch.from_numpy(array).pin_memory().numpy()
        return pinned

    return type(values)(*map(pin, values))


def _replace(host: FrameBatch, replaced: Replacement, *, frames: bool) -> FrameBatch:
    """Put rows of the online buffer into a batch, in place where its arrays allow it."""
    columns = {}
    for name, theirs in replaced.batch._asdict().items():
        column = getattr(host, name)
        if theirs is not None and (frames or name != "frames"):
            column = column if column.flags.writeable else column.copy()
            column[replaced.rows] = theirs
        columns[name] = column
    return FrameBatch(**columns)


def stack_frames(frames: Tensor) -> Tensor:
    """Join a stack of frames into one observation.

    Args:
        frames: (B, k, H, W, C), oldest first, or (B, k, D).

    Returns:
        (B, H, W, k * C) with the oldest frame's channels first, or (B, k * D). On a CPU a view of
        frames that lie by planes; there the copy costs more than reading, gathering and shifting.
    """
    if frames.ndim == 3:
        return frames.flatten(1)
    stacked = frames.permute(0, 2, 3, 1, 4).flatten(3)
    return stacked if stacked.device.type == "cpu" else stacked.contiguous()


class ResidentFrames:
    """All observations of a split in the memory of the training device.

    Args:
        observations: the split's zarr array, (N, ...).
        device: where they go, a block at a time.

    Raises:
        StoreError: a damaged block.
    """

    def __init__(self, observations: Any, device: torch.device) -> None:
        dtype = torch.from_numpy(np.empty(0, observations.dtype)).dtype
        self._frames = torch.empty(observations.shape, dtype=dtype, device=device)

        def fill(start: int, stop: int) -> None:
            self._frames[start:stop] = torch.from_numpy(read_rows(observations, start, stop))

        map_blocks(fill, observations)

    def __call__(self, states: Tensor) -> Tensor:
        """The frames (B, T, ...) of stored states (B, T)."""
        frames = self._frames.index_select(0, states.flatten())
        return frames.reshape(*states.shape, *frames.shape[1:])
