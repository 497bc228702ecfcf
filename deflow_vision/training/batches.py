"""The batches of a run: from its dataset, and from the online buffer in that phase."""

from __future__ import annotations

from typing import Any, Literal

from deflow_vision.agents.base import Agent
from deflow_vision.datasets.augment import Augmentation
from deflow_vision.datasets.joint_replay import JointReplay
from deflow_vision.datasets.mixture import Mixture
from deflow_vision.datasets.remote import uncached
from deflow_vision.datasets.replay import Replay
from deflow_vision.datasets.sampler import Sampler, make_sampler
from deflow_vision.seeding import derive_seed
from deflow_vision.training.devices import free_device_memory
from deflow_vision.training.feed import Feed, ResidentFrames
from deflow_vision.training.setup import Setup

REFERENCE_SLOTS = 2_000_000
"""Of the reference's buffer, where the dataset has fewer transitions than that."""
_VAL_WINDOW_BLOCKS = 8


def make_feed(
    setup: Setup,
    agent: Agent,
    purpose: Literal["train", "val"],
    replay: Replay | JointReplay | None = None,
) -> Feed:
    """Batches of a split by step.

    Args:
        setup: the run, which closes the feed at its end.
        agent: draws its noises.
        purpose: which split.
        replay: the online buffer, which takes part from the first online update on.
    """
    config, device = setup.config, setup.accelerator.device
    split = setup.store.splits[purpose]
    data, num_streams = config.data, config.data.num_streams
    window_blocks = data.window_blocks
    if purpose == "val":  # a few batches, for which memory would be held throughout
        window_blocks = min(window_blocks or _VAL_WINDOW_BLOCKS, _VAL_WINDOW_BLOCKS)
    assert split is not None
    assert num_streams is not None  # filled in by `prepare`
    share = num_streams // setup.accelerator.num_processes
    first = setup.accelerator.process_index * share
    streams = range(first, first + share)
    seed = derive_seed(config.seed, purpose)
    sampler = make_sampler(
        split,
        setup.task.goal_key,
        frame_stack=data.frame_stack or 1,
        batch_size=config.batch_size,
        seed=seed,
        num_streams=num_streams,
        streams=streams,
        residency=data.residency,
        block_length=data.block_length,
        window_blocks=window_blocks,
        device_bytes=free_device_memory(device),
        fields=agent.batch_fields,
        **returns_settings(agent),
    )
    augment = purpose == "train" and setup.spec.pixels
    on_device = data.residency == "device"
    feed = Feed(
        sampler,
        Augmentation(data.augment, seed, num_streams, streams) if augment else None,
        agent,
        device,
        seed=seed,
        streams=streams,
        stream_size=config.batch_size // num_streams,
        resident=ResidentFrames(uncached(split.observations), device) if on_device else None,
        online=None if replay is None else _mixture(setup, replay, sampler, seed),
        online_from=config.offline_steps,
    )
    setup.closing.callback(feed.close)
    return feed


def returns_settings(agent: Agent) -> dict[str, Any]:
    """How `mc_returns` are summed, for the agents that ask for them."""
    return {
        "discount": getattr(agent.config, "discount", 0.99),
        "reward_scale": getattr(agent.config, "reward_scale", 1.0),
        "reward_shift": getattr(agent.config, "reward_shift", 0.0),
    }


def _mixture(setup: Setup, replay: Replay | JointReplay, sampler: Sampler, seed: int) -> Mixture:
    online, count = setup.config.online, sampler.transitions_per_epoch
    return Mixture(
        replay,
        count,
        setup.config.batch_size,
        seed=seed,
        sampling=online.sampling,
        ratio=online.ratio,
        slots=max(REFERENCE_SLOTS, count + 1) if online.overwrite_offline else None,
        offline=sampler.transitions,
    )
