from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deflow_vision.datasets.store import open_store
from deflow_vision.datasets.transitions import Fields, Transitions, returns_to_go

lengths = st.lists(st.integers(1, 7), min_size=1, max_size=6)
few = settings(max_examples=40, deadline=None)


def ends_of(episode_lengths) -> np.ndarray:
    return np.cumsum(episode_lengths, dtype=np.int64)


@few
@given(lengths, st.integers(1, 4))
def test_transitions_and_frames_equal_a_naive_loop(episode_lengths, frame_stack):
    states, frames, start = [], [], 0
    for length in episode_lengths:
        for state in range(start, start + length - 1):
            states.append(state)
            window = range(state - frame_stack + 1, state + 2)
            frames.append([max(start, number) for number in window])
        start += length
    index = Transitions(ends_of(episode_lengths), frame_stack)
    assert len(index) == len(states)
    found = index.states(np.arange(len(index)))
    np.testing.assert_array_equal(found, states)
    expected = np.array(frames, np.int64).reshape(-1, frame_stack + 1)
    np.testing.assert_array_equal(index.frames(found), expected)


@few
@given(lengths)
def test_before_counts_the_transitions_of_earlier_states(episode_lengths):
    index = Transitions(ends_of(episode_lengths), 1)
    states = index.states(np.arange(len(index)))
    every = np.arange(sum(episode_lengths) + 1)
    np.testing.assert_array_equal(index.before(every), [(states < s).sum() for s in every])


def test_stack_repeats_the_first_frame_of_an_episode():
    index = Transitions(np.array([4, 9]), 3)
    np.testing.assert_array_equal(
        index.frames(np.array([4, 5, 6])), [[4, 4, 4, 5], [4, 4, 5, 6], [4, 5, 6, 7]]
    )


def test_frame_stack_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Transitions(np.array([4]), 0)


@few
@given(st.data(), lengths, st.floats(0, 0.99))
def test_returns_to_go_equal_a_naive_loop(data, episode_lengths, discount):
    count = sum(episode_lengths)
    numbers = st.lists(st.sampled_from([-2.0, -1.0, 0.0]), min_size=count, max_size=count)
    rewards = np.array(data.draw(numbers), np.float32)
    masks = (rewards < 0).astype(np.float32)
    ends = ends_of(episode_lengths)
    starting = [s for s in range(count) if s + 1 not in ends]
    expected = np.zeros(count)
    for start, end in zip(ends - episode_lengths, ends, strict=True):
        for state in reversed(range(start, end - 1)):
            later = expected[state + 1]
            expected[state] = rewards[state] + discount * masks[state] * later
        own = rewards[start : end - 1]
        if len(own) and (own == rewards[starting].min()).all():
            expected[start : end - 1] = own[0] / (1 - discount)
    found = returns_to_go(rewards, masks, ends, discount)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_failure_throughout_is_valued_as_if_it_went_on_for_ever():
    rewards = np.array([-1, -1, -1, -1, 0, 0], np.float32)
    found = returns_to_go(rewards, np.ones(6, np.float32), np.array([3, 6]), 0.9)
    np.testing.assert_allclose(found, [-10, -10, 0, -1, 0, 0], rtol=1e-6)


def test_a_single_episode_fails_where_its_rewards_are_those_of_the_datas_failure():
    rewards, masks, ends = np.full(4, -1, np.float32), np.ones(4, np.float32), np.array([4])
    failed = returns_to_go(rewards, masks, ends, 0.9, failure=-1.0)
    np.testing.assert_allclose(failed, [-10, -10, -10, 0], rtol=1e-6)
    better = returns_to_go(rewards, masks, ends, 0.9, failure=-2.0)
    np.testing.assert_allclose(better, [-2.71, -1.9, -1, 0], rtol=1e-6)


def test_discount_of_one_is_refused_for_returns():
    with pytest.raises(ValueError, match="not 1"):
        returns_to_go(np.zeros(2, np.float32), np.ones(2, np.float32), np.array([2]), 1.0)


def batch_of(path, states, *names, **settings):
    split = open_store(path).train
    fields = Fields(split, "task1", Transitions(split.episode_ends, 1), names, **settings)
    frames = np.zeros((len(states), 2, 5), np.float32)
    return fields.batch(frames, np.array(states), fields.read_all(), np.array(states))


def test_next_action_at_the_end_of_an_episode_is_the_current_one(make_store):
    batch = batch_of(make_store((6, 2, 9)), [3, 4, 6, 8], "next_actions")
    assert batch.next_actions is not None
    np.testing.assert_allclose(batch.next_actions[:, 0] * 1000, [4, 4, 6, 9], rtol=1e-5)


def test_returns_are_of_scaled_and_shifted_rewards_but_the_batchs_rewards_are_not(make_store):
    path, states = make_store((6, 2, 9)), [0, 3, 6, 13]
    split = open_store(path).train
    rewards, masks = split.rewards("task1"), split.masks("task1")
    wanted = returns_to_go(10 * rewards + 5, masks, np.cumsum((6, 2, 9)), 0.9)
    settings = {"discount": 0.9, "reward_scale": 10.0, "reward_shift": 5.0}
    batch = batch_of(path, states, "mc_returns", **settings)
    np.testing.assert_allclose(batch.mc_returns, wanted[states], rtol=1e-6)
    np.testing.assert_array_equal(batch.rewards, rewards[states])
    plain = batch_of(path, states, "mc_returns", discount=0.9)
    assert not np.allclose(batch.mc_returns, 10 * plain.mc_returns)


def test_optional_fields_are_absent_unless_asked_for(make_store):
    batch = batch_of(make_store(), [0])
    assert batch.next_actions is None
    assert batch.mc_returns is None


def test_unknown_field_is_refused_with_the_choices(make_store):
    with pytest.raises(ValueError, match=r"'goals'.*next_actions, mc_returns"):
        batch_of(make_store(), [0], "goals")
