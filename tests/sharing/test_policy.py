from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deflow_vision.envs.make import make_env
from deflow_vision.envs.wrappers import FrameStack
from deflow_vision.sharing import Policy
from deflow_vision.types import UserError
from scripts.example_own_data import make
from tests.agents.conftest import make_agent, make_batch


def observations(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)


@pytest.fixture
def pixels(policy):
    """The policy of a run on pixels, 16x18 with two frames of three channels."""
    record = replace(policy.record, observation_shape=(16, 18, 6), observation_dtype="uint8")
    record = replace(record, frame_stack=2, action_dim=3)
    return Policy(make_agent("pixels").eval(), policy.config, record)


def test_an_action_of_one_observation_is_a_row_of_a_batch(policy, draws):
    rows = observations(3)
    one = policy(rows[0], generator=draws())
    assert (one.shape, one.dtype) == ((2,), np.float32)
    np.testing.assert_array_equal(one, policy(rows[:1], generator=draws())[0])
    assert policy(rows, generator=draws()).shape == (3, 2)


def test_actions_are_those_of_the_agent_with_the_same_noise(policy, draws):
    rows = observations(5)
    expected = policy.agent.act(torch.from_numpy(rows), generator=draws(7)).numpy()
    np.testing.assert_array_equal(policy(rows, generator=draws(7)), expected)
    assert not np.array_equal(policy(rows, generator=draws(8)), expected)


def test_each_row_of_a_batch_can_have_a_generator_of_its_own(policy, draws):
    rows = observations(2)
    together = policy(rows, generator=[draws(1), draws(2)])
    alone = policy(rows[1], generator=[draws(2)])
    np.testing.assert_allclose(together[1], alone, atol=1e-6)
    with pytest.raises(UserError, match="3 generators for 2 observations"):
        policy(rows, generator=[draws()] * 3)


def test_states_of_double_precision_are_taken(policy, draws):
    rows = observations(2)
    np.testing.assert_array_equal(
        policy(rows.astype(np.float64), generator=draws()), policy(rows, generator=draws())
    )


def test_pixels_are_taken_as_bytes_alone(pixels, draws):
    pictures = make_batch("pixels").observations.numpy()
    assert pixels(pictures, generator=draws()).shape == (7, 3)
    with pytest.raises(UserError, match="are float32; this policy takes uint8, from 0 to 255"):
        pixels((pictures / 255).astype(np.float32), generator=draws())


def test_states_are_not_taken_as_bytes(policy, draws):
    with pytest.raises(UserError, match="are uint8; this policy takes float32"):
        policy(np.zeros(6, np.uint8), generator=draws())


def test_an_unstacked_frame_is_refused_with_the_wrapper_that_stacks(policy, pixels, draws):
    with pytest.raises(UserError, match=r"shape \(2,\).*takes \(6,\).*FrameStack\(env, 3\)"):
        policy(np.zeros(2, np.float32), generator=draws())
    with pytest.raises(UserError, match=r"FrameStack\(env, 2\)"):
        pixels(np.zeros((5, 16, 18, 3), np.uint8), generator=draws())
    with pytest.raises(UserError, match=r"shape \(5,\); this policy takes \(6,\)") as refused:
        policy(np.zeros(5, np.float32), generator=draws())
    assert "FrameStack" not in str(refused.value)


def test_a_policy_acts_in_the_environment_that_it_names(policy, draws):
    env = make_env(**policy.environment)
    stacked = FrameStack(make(), 3, check_frames=False)
    observation, generator = env.reset(seed=3)[0], draws()
    np.testing.assert_array_equal(observation, stacked.reset(seed=3)[0])
    for _ in range(3):
        action = policy(observation, generator=generator)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)
        own, *_ = stacked.step(0.2 * action)  # the example's own bounds
        np.testing.assert_allclose(observation, own, atol=1e-6)


def test_an_earlier_checkpoint_can_be_taken(run):
    early, late = Policy.from_run(run, 3), Policy.from_run(run)
    assert (early.record.updates, late.record.updates) == (3, 6)
    assert early.record.run == late.record.run
    assert not torch.equal(early.agent.bc_flow.mlp.out.weight, late.agent.bc_flow.mlp.out.weight)
