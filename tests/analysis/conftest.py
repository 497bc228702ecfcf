"""A sample of pixels without a store, and agents that fit it."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.analysis.encoders import Subject
from deflow_vision.analysis.frames import Sample
from deflow_vision.networks.encoders import EncoderConfig
from tests.agents.conftest import SPECS, make_agent


@pytest.fixture
def pixels():
    """60 states of 15 episodes with a light spot, whose place and brightness are the targets."""
    rng = np.random.default_rng(0)
    rows, columns, episodes = rng.integers(0, 14, 60), rng.integers(0, 16, 60), np.arange(60) // 4
    observations = rng.integers(0, 20, (60, *SPECS["pixels"].observation_shape), dtype=np.uint8)
    for observation, row, column in zip(observations, rows, columns, strict=True):
        observation[row : row + 3, column : column + 3] += 200
    places = np.stack([rows, columns, 0 * rows], 1).astype(np.float32)
    return Sample(
        observations=observations,
        actions=rng.uniform(-1, 1, (60, 3)).astype(np.float32),
        episodes=episodes,
        times=np.arange(60) % 4,
        held_out=episodes >= 10,
        targets={"effector": places, "gripper": rng.random((60, 1), np.float32)},
        why_no_targets="",
        frame_stack=2,
    )


@pytest.fixture
def subject():
    def make(algo="deflow", sharing="shared", policy=None, updates=7, **changes):
        agent = make_agent("pixels", sharing, algo, **changes)
        config = EncoderConfig(name="impala_debug", sharing=sharing)
        return Subject(policy or algo, updates, agent, config)

    return make
