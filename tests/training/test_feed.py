"""Batches on their way to the agent: the same wherever frames live and whoever prepares them."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from deflow_vision.datasets.augment import Augmentation, AugmentConfig
from deflow_vision.datasets.mixture import Replacement
from deflow_vision.datasets.planes import empty_rows
from deflow_vision.datasets.sampler import make_sampler
from deflow_vision.datasets.store import open_store
from deflow_vision.networks.impala import Impala
from deflow_vision.training.dataset import value_range
from deflow_vision.training.feed import Feed, ResidentFrames, stack_frames
from deflow_vision.types import FrameBatch

CPU = torch.device("cpu")


class Noises(NamedTuple):
    """What the agent below draws."""

    flow: Tensor


class NoisyAgent:
    """Stands for an agent."""

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> Noises:
        return Noises(torch.rand(batch_size, generator=generator))


class Watched(Augmentation):
    """Notes which threads it works in."""

    def __call__(self, frames, step):
        self.threads = {*getattr(self, "threads", ()), threading.current_thread().name}
        return super().__call__(frames, step)


def feed_of(path, residency, augmentation=None, resident=False, online=None):
    split = open_store(path).train
    facts = {"frame_stack": 3, "batch_size": 6, "seed": 3, "num_streams": 2, "streams": (0, 1)}
    sampler = make_sampler(split, "task1", residency=residency, device_bytes=10**9, **facts)
    return Feed(
        sampler,
        augmentation,
        NoisyAgent(),
        CPU,
        seed=5,
        streams=(0, 1),
        stream_size=3,
        resident=ResidentFrames(split.observations, CPU) if resident else None,
        online=online,
        online_from=5,
    )


def batches(feed: Feed, steps=range(8)):
    try:
        return [feed(step) for step in steps]
    finally:
        feed.close()


def augmentation(**changes) -> Watched:
    return Watched(AugmentConfig(probability=1, padding=2, **changes), 1, 2, (0, 1))


@pytest.fixture
def path(stores):
    return stores["pixels"]


def test_frames_on_the_device_make_the_batches_of_frames_in_memory(path):
    ram = batches(feed_of(path, "ram", augmentation()))
    device = batches(feed_of(path, "device", augmentation(), resident=True))
    for (ours, noises), (theirs, other_noises) in zip(ram, device, strict=True):
        assert torch.equal(noises.flow, other_noises.flow)
        for name in ("observations", "actions", "rewards", "masks", "next_observations"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("residency", ["ram", "stream", "device"])
def test_rows_of_the_online_buffer_take_part_from_their_phase_on(path, residency):
    resident, rows = residency == "device", np.array([1, 4])
    theirs = feed_of(path, "ram")._sampler.batch(40)
    part = FrameBatch(*(None if c is None else c[:2] for c in theirs))
    asked = []

    def online(step):
        asked.append(step)
        return Replacement(rows, part) if step == 6 else None

    offline = batches(feed_of(path, residency, resident=resident))
    both = batches(feed_of(path, residency, resident=resident, online=online))
    assert asked == [5, 6, 7]  # in the loop's order, never ahead of it
    for step, ((ours, _), (before, _)) in enumerate(zip(both, offline, strict=True)):
        kept = [0, 2, 3, 5] if step == 6 else list(range(6))
        assert torch.equal(ours.observations[kept], before.observations[kept])
        assert torch.equal(ours.rewards[kept], before.rewards[kept])
    batch = both[6][0]
    np.testing.assert_array_equal(batch.actions[rows], part.actions)
    np.testing.assert_array_equal(batch.masks[rows], part.masks)
    wanted = stack_frames(torch.from_numpy(part.frames[:, 1:]))
    assert torch.equal(batch.next_observations[rows], wanted)


@pytest.mark.parametrize("residency", ["ram", "stream"])
def test_batch_is_the_shifted_and_stacked_frames_of_the_sampler(path, residency):
    shift = augmentation()
    feed = feed_of(path, residency, shift)
    ours, noises = batches(feed, [4])[0]
    other = feed_of(path, residency)
    frames = torch.from_numpy(other._sampler.batch(4).frames)
    other.close()
    shifted = shift(frames, 4).numpy()
    assert noises.flow.shape == (6,)
    expected = np.concatenate(np.moveaxis(shifted[:, :3], 1, 0), axis=-1)
    np.testing.assert_array_equal(ours.observations, expected)
    expected = np.concatenate(np.moveaxis(shifted[:, 1:], 1, 0), axis=-1)
    np.testing.assert_array_equal(ours.next_observations, expected)


def test_a_cpu_shifts_frames_beside_the_training_thread(path):
    shift = augmentation()
    batches(feed_of(path, "ram", shift))
    assert all(name.startswith("feed") for name in shift.threads)


def test_kornia_which_draws_from_the_global_generator_stays_in_the_training_thread(path):
    blur = augmentation(kornia=("RandomErasing((0.1, 0.2), p=0.5)",))
    batches(feed_of(path, "ram", blur), [0])
    assert blur.threads == {threading.main_thread().name}


def test_stacks_of_a_cpu_equal_those_of_a_device():
    frames = torch.randint(0, 256, (19, 2, 5, 4, 3), dtype=torch.uint8)
    expected = frames.permute(0, 2, 3, 1, 4).flatten(3)
    assert torch.equal(stack_frames(frames), expected)


def test_range_of_rewards_is_found_block_by_block(monkeypatch):
    class Blocks:
        shape, chunks, store = (10,), (4,), None

    lengths = []

    def read(array, start, stop):
        lengths.append(stop - start)
        return np.arange(start, stop, dtype=np.float32)

    monkeypatch.setattr("deflow_vision.training.dataset.read_rows", read)
    assert value_range(Blocks) == (0, 9)
    assert sorted(lengths) == [2, 4, 4]


def test_stacks_of_frames_by_planes_are_views_that_an_encoder_takes_alike():
    frames = empty_rows((3, 4, 8, 8, 3), np.dtype(np.uint8))
    frames[:] = np.random.default_rng(0).integers(0, 256, frames.shape)
    stacked = stack_frames(torch.from_numpy(frames)[:, 1:])
    assert np.shares_memory(stacked.numpy(), frames)
    encoder = Impala((8, 8, 9), stack_sizes=(4,), feature_dim=5)
    assert torch.equal(encoder(stacked), encoder(stacked.contiguous()))
